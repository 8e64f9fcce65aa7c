"""Rows of plain floats; the matrix instructions of attention take them as fp16, whatever their dtype."""

from __future__ import annotations

import triton
import triton.language as tl

from draftwood.cache.codecs.words import clamped, staged, tile_as
from draftwood.kernels.codec import Codec


@triton.jit
def _load(tensors, base, b_rows, m_rows, start, WIDTH: tl.constexpr, D: tl.constexpr):
    if staged(tensors[0]):
        b_x = tile_as(tensors[0], tensors[0].dtype, 1, 4)
    else:
        p_row = tensors[0] + base * D + start
        b_x = tl.load(p_row + b_rows[:, None] * D + tl.arange(0, WIDTH)[None, :], mask=m_rows[:, None], other=0.0)
    return b_x if b_x.dtype == tl.float16 else clamped(b_x.to(tl.float32))


@triton.jit
def _store(tensors, row, b_x, D: tl.constexpr):
    tl.store(tensors[0] + row * D + tl.arange(0, D), b_x.to(tensors[0].dtype.element_ty))


CODEC = Codec(_load, _store)
