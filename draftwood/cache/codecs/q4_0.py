"""KV type q4_0 on a GPU: fields scale and nibbles (cache/q4_0.py has the format)."""

from __future__ import annotations

import triton
import triton.language as tl

from draftwood.cache.codecs.blocks import (
    in_order,
    load_nibbles,
    load_scales,
    store_nibbles,
    store_numbers,
    symmetric,
)
from draftwood.kernels.codec import Codec


@triton.jit
def _load(tensors, base, b_rows, m_rows, start, WIDTH: tl.constexpr, D: tl.constexpr):
    b_scale = load_scales(tensors[0], base, b_rows, m_rows, start, WIDTH, D)
    b_codes = load_nibbles(tensors[1], base, b_rows, m_rows, start, WIDTH, D)
    return in_order(b_codes, 8) * b_scale


@triton.jit
def _store(tensors, row, b_x, D: tl.constexpr):
    b_step, b_codes = symmetric(b_x, 8, D)
    store_numbers(tensors[0], row, b_step, D)
    store_nibbles(tensors[1], row, b_codes, D)


CODEC = Codec(_load, _store, rotated=True)
