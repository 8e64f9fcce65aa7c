"""KV type q4_0: 32 values share a float16 scale, 4.5 bits a value (ggml's format, SPEC-dflash 4.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.cache.blocks import BLOCK, blocks, pack_nibbles, symmetric, unpack_nibbles
from draftwood.cache.coded import CodedPlane, Fields

ZERO = 8
"""The code of zero."""


class Plane(CodedPlane):
    """Rows as float16 scales [D/32] and nibbles uint8 [D/2]; value = (code - 8) * scale."""

    @staticmethod
    def layout(head_dim: int) -> dict[str, tuple[torch.dtype, int]]:
        """See CodedPlane."""
        return {"scale": (torch.float16, head_dim // BLOCK), "nibbles": (torch.uint8, head_dim // 2)}

    def encode(self, rows: Tensor) -> Fields:
        """See CodedPlane."""
        step, codes = symmetric(blocks(rows), ZERO)
        return {"scale": step.squeeze(-1).half(), "nibbles": pack_nibbles(codes.to(torch.uint8))}

    def decode(self, fields: Fields) -> Tensor:
        """See CodedPlane."""
        codes = unpack_nibbles(fields["nibbles"]).float() - ZERO
        return (codes * fields["scale"].float().unsqueeze(-1)).flatten(-2)
