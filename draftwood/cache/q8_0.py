"""KV type q8_0: 32 values share one float16 scale, 8.5 bits a value (ggml's block format, SPEC-dflash 4.5).

scale = max|x| / 127 rounded to float16, code = round(x / scale), value = code * scale. The codes and the scales lie
in two buffers, so that a row of codes stays aligned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.cache import base

BLOCK = 32


def encode(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 [..., D] -> int8 codes [..., D] and float16 scales [..., D/32]."""
    blocks = rows.float().unflatten(-1, (-1, BLOCK))
    scale = (blocks.abs().amax(-1) / 127.0).half()
    step = scale.float().unsqueeze(-1)
    inverse = torch.where(step > 0, 1.0 / step, torch.zeros_like(step))
    codes = (blocks * inverse).round().clamp(-127, 127).to(torch.int8)
    return codes.flatten(-2), scale


def decode(codes: Tensor, scale: Tensor) -> Tensor:
    """The inverse of `encode`: float32 [..., D]."""
    values: Tensor = codes.unflatten(-1, (-1, BLOCK)) * scale.float().unsqueeze(-1)
    return values.flatten(-2)


class Plane(base.Plane):
    """Rows as int8 codes [G, rows, D] with float16 scales [G, rows, D/32]."""

    def __init__(self, heads: int, head_dim: int, capacity: int, device: str) -> None:
        super().__init__(heads, head_dim, capacity, device)
        self.codes = torch.empty(heads, self.rows, head_dim, dtype=torch.int8, device=device)
        self.scale = torch.empty(heads, self.rows, head_dim // BLOCK, dtype=torch.float16, device=device)

    def write(self, rows: Tensor, at: int) -> None:
        """Encode rows [n, G, D] at row `at`."""
        codes, scale = encode(rows)
        self.codes[:, at : at + rows.shape[0]] = codes.transpose(0, 1)
        self.scale[:, at : at + rows.shape[0]] = scale.transpose(0, 1)

    def move(self, source: Tensor, at: int) -> None:
        """Copy rows `source` to row `at`."""
        self.codes[:, at : at + source.shape[0]] = self.codes[:, source]
        self.scale[:, at : at + source.shape[0]] = self.scale[:, source]

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop-1 decoded, float32 [G, n, D]."""
        return decode(self.codes[:, start:stop], self.scale[:, start:stop])

    def buffers(self) -> dict[str, Tensor]:
        """Codes and scales."""
        return {"codes": self.codes, "scale": self.scale}
