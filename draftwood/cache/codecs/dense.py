"""Rows of plain floats; the matrix instructions of attention take them as fp16, whatever their dtype."""

from __future__ import annotations

import triton
import triton.language as tl

from draftwood.kernels.codec import Codec


@triton.jit
def _load(tensors, base, b_rows, m_rows, start, WIDTH: tl.constexpr, D: tl.constexpr):
    p_row = tensors[0] + base * D + start
    b_x = tl.load(p_row + b_rows[:, None] * D + tl.arange(0, WIDTH)[None, :], mask=m_rows[:, None], other=0.0)
    if b_x.dtype != tl.float16:
        b_x = tl.minimum(tl.maximum(b_x.to(tl.float32), -65504.0), 65504.0).to(tl.float16)
    return b_x


@triton.jit
def _store(tensors, row, b_x, D: tl.constexpr):
    tl.store(tensors[0] + row * D + tl.arange(0, D), b_x.to(tensors[0].dtype.element_ty))


CODEC = Codec(_load, _store)
