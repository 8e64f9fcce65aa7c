"""KV type q5_0: 32 values share a float16 scale, 5.5 bits a value (ggml's format, SPEC-dflash 4.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.cache.blocks import (
    BLOCK,
    blocks,
    pack_fifth,
    pack_nibbles,
    symmetric,
    unpack_fifth,
    unpack_nibbles,
)
from draftwood.cache.coded import CodedPlane, Fields

ZERO = 16
"""The code of zero."""


class Plane(CodedPlane):
    """Rows as float16 scales [D/32], fifth bits int32 [D/32] and nibbles uint8 [D/2]; value = (code - 16) * scale."""

    @staticmethod
    def layout(head_dim: int) -> dict[str, tuple[torch.dtype, int]]:
        """See CodedPlane."""
        count = head_dim // BLOCK
        return {"scale": (torch.float16, count), "fifth": (torch.int32, count), "nibbles": (torch.uint8, head_dim // 2)}

    def encode(self, rows: Tensor) -> Fields:
        """See CodedPlane."""
        step, levels = symmetric(blocks(rows), ZERO)
        codes = levels.to(torch.uint8)
        return {"scale": step.squeeze(-1).half(), "fifth": pack_fifth(codes), "nibbles": pack_nibbles(codes)}

    def decode(self, fields: Fields) -> Tensor:
        """See CodedPlane."""
        codes = (unpack_nibbles(fields["nibbles"]) | unpack_fifth(fields["fifth"])).float() - ZERO
        return (codes * fields["scale"].float().unsqueeze(-1)).flatten(-2)
