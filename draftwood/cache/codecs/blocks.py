"""What the codecs of ggml's block formats share (cache/blocks.py has the formats).

A code of up to eight bits becomes a half by its bits: 0x6400 | code is 1024 + code, and the difference to 1024 plus the
code of zero is exact. Its product with the scale is rounded once, as is the sum with a minimum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from draftwood.cache.codecs.words import count_to, halves, load_along, load_words, numbers, rows_of, staged, tile_of


@triton.jit
def load_scales(p_field, base, b_rows, m_rows, start, WIDTH: tl.constexpr, D: tl.constexpr):
    """A half a block, fields float16 [D / 32], for every value: fp16 [n, WIDTH].

    One load for two blocks, spread by registers; an address for every value would be a load for every value.
    """
    N: tl.constexpr = rows_of(p_field, b_rows)
    BLOCKS: tl.constexpr = WIDTH // 32
    if staged(p_field):
        b_scale = tile_of(p_field)
    elif WIDTH >= 64:
        b_scale = halves(load_words(p_field, base, b_rows, m_rows, start // 64, WIDTH // 64, D // 64))
    else:
        b_scale = tl.load(p_field + base + b_rows, mask=m_rows, other=0.0)
    b_scale = tl.reshape(b_scale, (N, BLOCKS, 1))
    return tl.reshape(tl.broadcast_to(b_scale, (N, BLOCKS, 32)), (N, WIDTH))


@triton.jit
def load_nibbles(p_field, base, b_rows, m_rows, start, WIDTH: tl.constexpr, D: tl.constexpr):
    """Nibbles as bytes, int32 [n, WIDTH / 4] for `in_order`: word k of a block has the values 4 k .. 4 k + 3 in the low
    halves of its bytes and 16 + 4 k .. in the high ones; here two words follow each other."""
    b_word = load_words(p_field, base, b_rows, m_rows, start // 8, WIDTH // 8, D // 8, 2, 4, 32)
    return tl.reshape(tl.join(b_word, b_word >> 4) & 0x0F0F0F0F, (rows_of(p_field, b_rows), WIDTH // 4))


@triton.jit
def load_fifth(p_field, base, b_rows, m_rows, start, WIDTH: tl.constexpr, D: tl.constexpr):
    """Bit 4 of the codes in the places that `load_nibbles` has for them."""
    N: tl.constexpr = rows_of(p_field, b_rows)
    b_fifth = load_along(p_field, base, b_rows, m_rows, start // 32, WIDTH // 32, D // 32)
    b_four = b_fifth[:, :, None] >> (count_to(4) * 4)[None, None, :]
    b_four = tl.join(b_four, b_four >> 16) & 15
    # The product has bit j at 4 + 8 j, and others elsewhere.
    return tl.reshape(b_four * 0x02040810 & 0x10101010, (N, WIDTH // 4))


@triton.jit
def in_order(b_codes, ZERO: tl.constexpr):
    """Codes as bytes, int32 [n, WIDTH / 4] -> code - ZERO, fp16 [n, WIDTH]."""
    N: tl.constexpr = b_codes.shape[0]
    BLOCKS: tl.constexpr = b_codes.shape[1] // 8
    b_half = tl.reshape(numbers(b_codes), (N, BLOCKS, 4, 2, 4))
    return tl.reshape(tl.permute(b_half, (0, 1, 3, 2, 4)), (N, BLOCKS * 32)) - (1024.0 + ZERO)


@triton.jit
def symmetric(b_x, LEVELS: tl.constexpr, D: tl.constexpr):
    """As `cache.blocks.symmetric`, of a row float32 [D]: steps [D / 32] and codes int32 [D / 32, 32]."""
    b_blocks = tl.reshape(b_x, (D // 32, 32))
    _, b_first = tl.max(tl.abs(b_blocks), 1, return_indices=True)
    m_first = tl.arange(0, 32)[None, :] == b_first[:, None]
    # By bits, as a sum would turn a negative zero.
    b_bits = tl.sum(tl.where(m_first, b_blocks.to(tl.int32, bitcast=True), 0), 1)
    b_step = b_bits.to(tl.float32, bitcast=True) * (-1.0 / LEVELS)
    return b_step, _codes(b_blocks, b_step, LEVELS + 0.5, 2 * LEVELS - 1)


@triton.jit
def spanning(b_x, TOP: tl.constexpr, D: tl.constexpr):
    """As `cache.blocks.spanning`: steps and minimums [D / 32], and codes int32 [D / 32, 32]."""
    b_blocks = tl.reshape(tl.where(b_x == 0, 0.0, b_x), (D // 32, 32))
    b_low = tl.min(b_blocks, 1)
    b_step = tl.div_rn(tl.max(b_blocks, 1) - b_low, TOP * 1.0)
    return b_step, b_low, _codes(b_blocks - b_low[:, None], b_step, 0.5, TOP)


@triton.jit
def _codes(b_x, b_step, HALF: tl.constexpr, TOP: tl.constexpr):
    b_inverse = tl.where(b_step == 0, 0.0, tl.div_rn(1.0, b_step))
    return tl.minimum(tl.maximum(b_x * b_inverse[:, None] + HALF, 0.0), TOP).to(tl.int32)


@triton.jit
def store_numbers(p_field, row, b_number, D: tl.constexpr):
    """A number a block, [D / 32]."""
    o_block = tl.arange(0, D // 32)
    tl.store(p_field + row * (D // 32) + o_block, b_number.to(p_field.dtype.element_ty))


@triton.jit
def store_nibbles(p_field, row, b_codes, D: tl.constexpr):
    """Bits 0-3 of codes int32 [D / 32, 32]."""
    b_halves = tl.permute(tl.reshape(b_codes & 15, (D // 32, 2, 16)), (0, 2, 1))
    b_low, b_high = tl.split(b_halves)
    b_byte = tl.reshape(b_low | b_high << 4, (D // 2,)).to(tl.uint8)
    tl.store(p_field + row * (D // 2) + tl.arange(0, D // 2), b_byte)


@triton.jit
def store_fifth(p_field, row, b_codes, D: tl.constexpr):
    """Bit 4 of codes int32 [D / 32, 32]."""
    store_numbers(p_field, row, tl.sum((b_codes >> 4) << tl.arange(0, 32)[None, :], 1), D)
