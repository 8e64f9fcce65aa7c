"""KV type q8_0 on a GPU: fields scale and codes (cache/q8_0.py has the format)."""

from __future__ import annotations

import triton
import triton.language as tl

from draftwood.cache.codecs.blocks import load_scales, store_numbers
from draftwood.cache.codecs.words import load_words, numbers, rows_of
from draftwood.kernels.codec import Codec


@triton.jit
def _load(tensors, base, b_rows, m_rows, start, WIDTH: tl.constexpr, D: tl.constexpr):
    N: tl.constexpr = rows_of(tensors[0], b_rows)
    b_scale = load_scales(tensors[0], base, b_rows, m_rows, start, WIDTH, D)
    # With the signs turned, a byte is the code and 128.
    b_word = load_words(tensors[1], base, b_rows, m_rows, start // 4, WIDTH // 4, D // 4, 4, 4, 16) ^ -0x7F7F7F80
    return (tl.reshape(numbers(b_word), (N, WIDTH)) - 1152.0) * b_scale


@triton.jit
def _store(tensors, row, b_x, D: tl.constexpr):
    b_blocks = tl.reshape(b_x, (D // 32, 32))
    b_step = tl.div_rn(tl.max(tl.abs(b_blocks), 1), 127.0)
    b_inverse = tl.where(b_step == 0, 0.0, tl.div_rn(1.0, b_step))
    b_steps = b_blocks * b_inverse[:, None]
    # Halves away from zero: a cast drops the fraction.
    b_codes = (b_steps + tl.where(b_steps < 0, -0.5, 0.5)).to(tl.int8)
    store_numbers(tensors[0], row, b_step, D)
    tl.store(tensors[1] + row * D + tl.arange(0, D), tl.reshape(b_codes, (D,)))


CODEC = Codec(_load, _store, rotated=True)
