"""KV type q4_1 on a GPU: fields scale, minimum and nibbles (cache/q4_1.py has the format)."""

from __future__ import annotations

import triton
import triton.language as tl

from draftwood.cache.codecs.blocks import (
    in_order,
    load_nibbles,
    load_scales,
    spanning,
    store_nibbles,
    store_numbers,
)
from draftwood.cache.codecs.words import scaled
from draftwood.kernels.codec import Codec


@triton.jit
def _load(tensors, base, b_rows, m_rows, start, WIDTH: tl.constexpr, D: tl.constexpr):
    b_scale = load_scales(tensors[0], base, b_rows, m_rows, start, WIDTH, D)
    b_low = load_scales(tensors[1], base, b_rows, m_rows, start, WIDTH, D)
    b_codes = load_nibbles(tensors[2], base, b_rows, m_rows, start, WIDTH, D)
    return scaled(in_order(b_codes, 0), b_scale, b_low)


@triton.jit
def _store(tensors, row, b_x, D: tl.constexpr):
    b_step, b_low, b_codes = spanning(b_x, 15, D)
    store_numbers(tensors[0], row, b_step, D)
    store_numbers(tensors[1], row, b_low, D)
    store_nibbles(tensors[2], row, b_codes, D)


CODEC = Codec(_load, _store, rotated=True)
