# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""How a kernel reads the kept rows of a KV type: load(p_0, p_1, p_2, base_row, o_rows, D) -> float16 [n, D].

p_*: the field buffers of a plane, [G, rows, width] each, in the order of `Kept.fields`. base_row: int64, the first row
of a head, counted over all heads. o_rows: int32 [n], rows of that head. A load has no mask: a kernel names a row that
is there and hides its score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def load_floats(p_0, p_1, p_2, base_row, o_rows, D: tl.constexpr):
    """Rows kept as floats."""
    b_rows = tl.load(p_0 + base_row * D + (o_rows[:, None] * D + tl.arange(0, D)[None, :]))
    return b_rows.to(tl.float16)


@triton.jit
def load_q8_0(p_0, p_1, p_2, base_row, o_rows, D: tl.constexpr):
    """Scales float16 [D/32] and codes int8 [D]."""
    N: tl.constexpr = o_rows.shape[0]
    BLOCKS: tl.constexpr = D // 32
    b_codes = tl.load(p_1 + base_row * D + (o_rows[:, None] * D + tl.arange(0, D)[None, :]))
    b_scales = tl.load(p_0 + base_row * BLOCKS + (o_rows[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :]))
    # 0x6400 is the half 1024, whose last bit is worth 1: 0x6480 + code is 1152 + code. Conversions are slow.
    b_values = (b_codes.to(tl.int16) + 0x6480).to(tl.float16, bitcast=True) - 1152.0
    b_values = tl.reshape(b_values, (N, BLOCKS, 32)) * b_scales[:, :, None]
    return tl.reshape(b_values, (N, D))


@dataclass(frozen=True)
class Kept:
    """The rows of one plane as kernels read them.

    load: see the module. fields: one to three contiguous buffers [G, rows, width].
    """

    load: Any
    fields: tuple[Tensor, ...]

    @property
    def heads(self) -> int:
        """KV heads."""
        return self.fields[0].shape[0]

    @property
    def rows(self) -> int:
        """Rows of a head."""
        return self.fields[0].shape[1]

    @property
    def pointers(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The fields as a kernel takes them."""
        first, second, third = (*self.fields, None, None)[:3]
        return first, second, third

    @property
    def halves(self) -> Tensor | None:
        """The rows themselves where they are kept as float16."""
        only = self.fields[0]
        return only if len(self.fields) == 1 and only.dtype is torch.float16 else None
