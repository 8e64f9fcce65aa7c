"""The dense `qwen3` architecture (SPEC-qwen35 3.3): NeoX rotary, q/k norm. Importing this does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from draftwood.formats.header import ModelHeader
from draftwood.models.spec import ModelSpec, transformer_spec

if TYPE_CHECKING:
    from draftwood.layers.weights import Weights
    from draftwood.models.base import Model


def read_spec(source: ModelHeader) -> ModelSpec:
    """The model's facts."""
    return transformer_spec(source, pairing="halves")


def build(spec: ModelSpec, weights: Weights) -> Model:
    """The model on the weights' device."""
    from draftwood.models.assembly import transformer

    return transformer(spec, weights, qk_norm=True)
