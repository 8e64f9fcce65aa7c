"""The `llama` architecture (SPEC-llama): adjacent-pair rotary, no q/k norm. Importing this does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from draftwood.errors import UnsupportedModelError
from draftwood.formats.header import ModelHeader
from draftwood.models.spec import ModelSpec, transformer_spec

if TYPE_CHECKING:
    from draftwood.layers.weights import Weights
    from draftwood.models.base import Model


def read_spec(source: ModelHeader) -> ModelSpec:
    """The model's facts."""
    if source.get("llama.expert_count", 0):
        raise UnsupportedModelError(
            f"{source.path.name}: mixture-of-experts llama files (Mixtral) are not supported; use a dense model."
        )
    bias = next((name for name in source.tensors if name.startswith("blk.") and name.endswith(".bias")), None)
    if bias is not None:
        raise UnsupportedModelError(
            f"{source.path.name}: draftwood's llama has no biases, the file has {bias!r}; use a model without them."
        )
    return transformer_spec(source, pairing="adjacent")


def build(spec: ModelSpec, weights: Weights) -> Model:
    """The model on the weights' device."""
    from draftwood.models.assembly import transformer

    return transformer(spec, weights, qk_norm=False)
