"""KV type q5_1: 32 values share a float16 scale and minimum, 6 bits a value (ggml's format, SPEC-dflash 4.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.cache.blocks import (
    BLOCK,
    blocks,
    pack_fifth,
    pack_nibbles,
    spanning,
    unpack_fifth,
    unpack_nibbles,
)
from draftwood.cache.coded import CodedPlane, Fields


class Plane(CodedPlane):
    """Rows as float16 scales and minimums [D/32], fifth bits int32 [D/32] and nibbles uint8 [D/2].

    value = code * scale + minimum.
    """

    @staticmethod
    def layout(head_dim: int) -> dict[str, tuple[torch.dtype, int]]:
        """See CodedPlane."""
        count = head_dim // BLOCK
        half = torch.float16, count
        return {
            "scale": half,
            "minimum": half,
            "fifth": (torch.int32, count),
            "nibbles": (torch.uint8, head_dim // 2),
        }

    def encode(self, rows: Tensor) -> Fields:
        """See CodedPlane."""
        step, low, levels = spanning(blocks(rows), 31)
        codes = levels.to(torch.uint8)
        return {
            "scale": step.squeeze(-1).half(),
            "minimum": low.squeeze(-1).half(),
            "fifth": pack_fifth(codes),
            "nibbles": pack_nibbles(codes),
        }

    def decode(self, fields: Fields) -> Tensor:
        """See CodedPlane."""
        scale, low = (fields[name].float().unsqueeze(-1) for name in ("scale", "minimum"))
        codes = unpack_nibbles(fields["nibbles"]) | unpack_fifth(fields["fifth"])
        return (codes * scale + low).flatten(-2)
