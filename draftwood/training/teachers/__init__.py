"""Forms of a target for training: read packed documents, and take one step with many sequences.

The dense form is fast and knows full-attention models; the engine's own serves every architecture that draftwood runs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from draftwood.formats.gguf import GGUFFile

if TYPE_CHECKING:
    from draftwood.training.teachers.base import Teacher

TEACHERS: dict[str, str] = {
    "dense": "draftwood.training.teachers.dense",
    "engine": "draftwood.training.teachers.engine",
}
"""Form -> its module, which offers `can_teach(source) -> bool` and `open_teacher(source, device) -> Teacher`."""


def open_teacher(source: GGUFFile, device: str, form: str = "auto") -> Teacher:
    """The named form, or the first that can teach from this file."""
    modules = [import_module(path) for name, path in TEACHERS.items() if form in ("auto", name)]
    module = next(module for module in modules if module.can_teach(source))
    opener: Callable[[GGUFFile, str], Teacher] = module.open_teacher
    return opener(source, device)
