"""Rows kept as floats of one dtype; the KV types f32, f16 and bf16 differ only in it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from draftwood.cache.base import Plane


class DensePlane(Plane):
    """Rows as plain floats, [G, rows, D]."""

    dtype: ClassVar[torch.dtype]

    def __init__(self, heads: int, head_dim: int, capacity: int, device: str) -> None:
        super().__init__(heads, head_dim, capacity, device)
        self.data = torch.empty(heads, self.rows, head_dim, dtype=self.dtype, device=device)

    def write(self, rows: Tensor, at: int) -> None:
        """Encode rows [n, G, D] at row `at`."""
        self.data[:, at : at + rows.shape[0]] = rows.transpose(0, 1)

    def move(self, source: Tensor, at: int) -> None:
        """Copy rows `source` to row `at`."""
        self.data[:, at : at + source.shape[0]] = self.data[:, source]

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop-1 as float32 [G, n, D]; for f32 a view."""
        return self.data[:, start:stop].float()

    def buffers(self) -> dict[str, Tensor]:
        """The one buffer."""
        return {"data": self.data}
