"""What a buffer is before it exists (DESIGN section 3): packages state theirs, the planner adds, the loader allocates.

Torch-free, and below every package, so that each can state its buffers in a `buffers.py` of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

DTYPE_BYTES = {"uint8": 1, "int8": 1, "int16": 2, "float16": 2, "bfloat16": 2, "int32": 4, "float32": 4, "int64": 8}
"""Bytes of one element, by the names that torch uses too."""

Lifetime = Literal["model", "sequence", "pass"]
"""How long a buffer lives: as long as the model is loaded, as long as a request, or for one pass after another."""


@dataclass(frozen=True)
class BufferSpec:
    """A buffer: name, shape, dtype (a key of DTYPE_BYTES) and lifetime."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    lifetime: Lifetime

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def total(buffers: Iterable[BufferSpec]) -> int:
    """Bytes of all buffers together."""
    return sum(buffer.nbytes for buffer in buffers)


def largest(*groups: Sequence[BufferSpec]) -> Sequence[BufferSpec]:
    """The group with the most bytes: what must be set aside where only one of them is in use at a time."""
    return max(groups, key=total)
