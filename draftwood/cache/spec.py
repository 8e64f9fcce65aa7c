"""What a KV type is, before any tensor exists (torch-free: the planner reads it on a laptop)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class KVSpec:
    """A KV type.

    name: what the user writes. aliases: other spellings. bits: bits one value takes, a function of the head width.
    head_multiple: head widths must be a multiple of this. module: where its `Plane` class is, imported on first use.
    """

    name: str
    aliases: tuple[str, ...]
    bits: Callable[[int], float]
    head_multiple: int
    module: str

    def row_bytes(self, head_dim: int) -> int:
        """Bytes of one token's values of one head."""
        return round(self.bits(head_dim) * head_dim / 8)
