"""The target architectures by their GGUF name. One line each; data only, so the planner can read it without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from draftwood.errors import UnsupportedModelError
from draftwood.formats.header import ModelHeader
from draftwood.models.spec import ModelSpec

if TYPE_CHECKING:
    from draftwood.layers.weights import Weights
    from draftwood.models.base import Model

ARCHITECTURES: dict[str, str] = {
    "llama": "draftwood.models.llama",
    "qwen3": "draftwood.models.qwen3",
    "qwen35": "draftwood.models.qwen35",
}


class Architecture(Protocol):
    """What a module of `ARCHITECTURES` offers; importing it does not import torch."""

    def read_spec(self, source: ModelHeader) -> ModelSpec:
        """The model's facts; a FormatError where they do not fit together."""

    def build(self, spec: ModelSpec, weights: Weights) -> Model:
        """The model on the weights' device."""


def architecture(source: ModelHeader) -> Architecture:
    """The architecture of a file; an UnsupportedModelError lists the known ones."""
    name = source.architecture
    if name not in ARCHITECTURES:
        hint = (
            "it is a draft: give it as the draft of its target"
            if "dflash" in name
            else f"the known ones are {', '.join(ARCHITECTURES)}"
        )
        raise UnsupportedModelError(
            f"{source.path.name}: {name[:40]!r} is not a target architecture that draftwood runs; {hint}."
        )
    module: Architecture = import_module(ARCHITECTURES[name])
    return module
