"""KV type q4_1: 32 values share a float16 scale and minimum, 5 bits a value (ggml's format, SPEC-dflash 4.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.cache.blocks import BLOCK, blocks, pack_nibbles, spanning, unpack_nibbles
from draftwood.cache.coded import CodedPlane, Fields


class Plane(CodedPlane):
    """Rows as float16 scales and minimums [D/32] and nibbles uint8 [D/2]; value = code * scale + minimum."""

    @staticmethod
    def layout(head_dim: int) -> dict[str, tuple[torch.dtype, int]]:
        """See CodedPlane."""
        half = torch.float16, head_dim // BLOCK
        return {"scale": half, "minimum": half, "nibbles": (torch.uint8, head_dim // 2)}

    def encode(self, rows: Tensor) -> Fields:
        """See CodedPlane."""
        step, low, codes = spanning(blocks(rows), 15)
        return {
            "scale": step.squeeze(-1).half(),
            "minimum": low.squeeze(-1).half(),
            "nibbles": pack_nibbles(codes.to(torch.uint8)),
        }

    def decode(self, fields: Fields) -> Tensor:
        """See CodedPlane."""
        scale, low = (fields[name].float().unsqueeze(-1) for name in ("scale", "minimum"))
        return (unpack_nibbles(fields["nibbles"]) * scale + low).flatten(-2)
