"""KV type q8_0: 32 values share a float16 scale, 8.5 bits a value (ggml's format, SPEC-dflash 4.5).

scale = max|x| / 127, code = x / scale rounded to the nearest (halves away from zero), value = code * scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.cache.blocks import BLOCK, blocks, inverse
from draftwood.cache.coded import CodedPlane, Fields


class Plane(CodedPlane):
    """Rows as int8 codes [D] and float16 scales [D/32]."""

    @staticmethod
    def layout(head_dim: int) -> dict[str, tuple[torch.dtype, int]]:
        """See CodedPlane."""
        return {"scale": (torch.float16, head_dim // BLOCK), "codes": (torch.int8, head_dim)}

    def encode(self, rows: Tensor) -> Fields:
        """See CodedPlane."""
        x = blocks(rows)
        step = x.abs().amax(-1, keepdim=True) / 127
        steps = x * inverse(step)
        codes = (steps + 0.5 * steps.sign()).trunc()
        return {"scale": step.squeeze(-1).half(), "codes": codes.to(torch.int8).flatten(-2)}

    def decode(self, fields: Fields) -> Tensor:
        """See CodedPlane."""
        return (blocks(fields["codes"]) * fields["scale"].float().unsqueeze(-1)).flatten(-2)
