"""The codecs of tq4_0, tq3_0 and tq2_0: fields norm, codes and, of tq3_0, signs (cache/sphere.py has the format).

A row has few magnitudes. They are multiplied by its norm in float32 and rounded to halves once a row, and a value is
one of them with its sign, chosen by the bits of its code. A word of sixteen codes becomes two words of eight first.
Codes that are half a word apart fall into the two halves of a register; NVIDIA's byte permutation looks four codes up
at once instead, which is worth most of the instructions of tq4_0 (README.md).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.cache.codecs.words import (
    halves,
    in_registers,
    load_along,
    load_words,
    on_nvidia,
    rows_of,
    staged,
    tile_of,
)
from draftwood.cache.sphere import LONGEST, codebook

_LONGEST = tl.constexpr(LONGEST)
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _load_norms(p_norm, base, b_rows, m_rows):
    """fp16 [n], out of words of two rows each. The other row may be none: what is allocated ends on whole words."""
    if staged(p_norm):
        b_norm = tile_of(p_norm)
    else:
        b_at = base + b_rows
        b_word = tl.load(p_norm.to(tl.pointer_type(tl.int32)) + (b_at >> 1), mask=m_rows, other=0)
        b_norm = (b_word >> ((b_at & 1) << 4).to(tl.int32)).to(tl.int16).to(tl.float16, bitcast=True)
    return b_norm


@triton.jit
def _bits(p_table, b_norm, NUMBER: tl.constexpr):
    """A magnitude of rows as the bits of a half, int32 [n, 1, 1, 1]."""
    level = p_table[NUMBER] if in_registers(p_table) else tl.load(p_table + NUMBER)
    b_half = (b_norm.to(tl.float32) * level).to(tl.float16)
    return b_half.to(tl.int16, bitcast=True).to(tl.int32)[:, None, None, None]


@triton.jit
def _moved(b_word, BY: tl.constexpr):
    """Bits up by BY places, or down."""
    if BY < 0:
        return b_word >> -BY
    else:
        return b_word << BY


@triton.jit
def _with_signs(b_word, b_sign, PLACE: tl.constexpr):
    """Words of sixteen codes of two bits, int32 [n, W], and the signs of two words each, [n, W / 2] -> words of eight
    codes of four bits, [n, W, 2]: those of the even fields and of the odd ones, each with its sign at bit PLACE."""
    b_even = tl.join(_moved(b_sign, PLACE), _moved(b_sign, PLACE - 2))
    b_odd = tl.join(_moved(b_sign, PLACE - 1), _moved(b_sign, PLACE - 3))
    MASK: tl.constexpr = 0x44444444 if PLACE == 2 else -0x77777778
    b_sign = tl.reshape(tl.join(b_even, b_odd) & MASK, (b_word.shape[0], b_word.shape[1], 2))
    return (tl.join(b_word, b_word >> 2) & 0x33333333) | b_sign


@triton.jit
def _chosen(b_zero, b_one, b_code, BIT: tl.constexpr):
    """Halves of b_one where bit BIT of a code is set, of b_zero elsewhere."""
    b_mask = ((b_code >> BIT) & 0x00010001) * 0xFFFF
    return b_zero ^ ((b_zero ^ b_one) & b_mask)


@triton.jit
def _one_of_two(p_table, b_norm, b_code, FIRST: tl.constexpr):
    b_zero, b_one = _bits(p_table, b_norm, FIRST), _bits(p_table, b_norm, FIRST + 1)
    return _chosen(b_zero | b_zero << 16, b_one | b_one << 16, b_code, 0)


@triton.jit
def _one_of_four(p_table, b_norm, b_code, FIRST: tl.constexpr):
    b_lower, b_upper = _one_of_two(p_table, b_norm, b_code, FIRST), _one_of_two(p_table, b_norm, b_code, FIRST + 2)
    return _chosen(b_lower, b_upper, b_code, 1)


@triton.jit
def _by_bits(p_table, b_norm, b_word, SIGN: tl.constexpr, NUMBERS: tl.constexpr):
    """Words of eight codes of one of NUMBERS magnitudes, its sign at bit SIGN: int32 [n, W, S] -> fp16 [n, W, S, 8]."""
    b_code = tl.join(b_word, b_word >> 8)
    b_code = tl.join(b_code, b_code >> 4)
    b_code = tl.reshape(b_code, (b_word.shape[0], b_word.shape[1], b_word.shape[2], 4))
    if NUMBERS == 8:
        b_upper = _one_of_four(p_table, b_norm, b_code, 4)
        b_pair = _chosen(_one_of_four(p_table, b_norm, b_code, 0), b_upper, b_code, 2)
    elif NUMBERS == 4:
        b_pair = _one_of_four(p_table, b_norm, b_code, 0)
    else:
        b_pair = _one_of_two(p_table, b_norm, b_code, 0)
    b_half = halves(b_pair ^ (b_code << (15 - SIGN) & -0x7FFF8000))
    return tl.permute(b_half, (0, 1, 2, 4, 3))


@triton.jit
def _permuted(b_first, b_second, b_places):
    """Four of the eight bytes of two words, by the nibbles of the low half of `b_places`, on NVIDIA."""
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [b_first, b_second, b_places], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _bytes(p_table, b_norm, FIRST: tl.constexpr, NUMBERS: tl.constexpr):
    """Low and high bytes of four magnitudes from number FIRST on, or of two and their negatives: int32 [n, 1, 1, 1]."""
    b_0, b_1 = _bits(p_table, b_norm, FIRST), _bits(p_table, b_norm, FIRST + 1)
    if NUMBERS == 2:
        b_2, b_3 = b_0 | 0x8000, b_1 | 0x8000
    else:
        b_2, b_3 = _bits(p_table, b_norm, FIRST + 2), _bits(p_table, b_norm, FIRST + 3)
    b_low = (b_0 & 255) | (b_1 & 255) << 8 | (b_2 & 255) << 16 | b_3 << 24
    return b_low, b_0 >> 8 | (b_1 >> 8) << 8 | (b_2 >> 8) << 16 | (b_3 >> 8) << 24


@triton.jit
def _by_permutation(p_table, b_norm, b_word, NUMBERS: tl.constexpr):
    """As `_by_bits`, the sign next above the number, by byte permutations of NVIDIA.

    Eight bytes to choose from are two or four magnitudes with their negatives, or eight.
    """
    b_low, b_high = _bytes(p_table, b_norm, 0, NUMBERS)
    if NUMBERS < 8:
        b_four = tl.join(b_word, b_word >> 16)
        b_low = _permuted(b_low, b_low, b_four)
        b_high = _permuted(b_high, b_high ^ -0x7F7F7F80, b_four)
    else:
        b_more_low, b_more_high = _bytes(p_table, b_norm, 4, NUMBERS)
        b_number, b_sign = b_word & 0x77777777, (b_word >> 3) & 0x11111111
        b_number, b_sign = tl.join(b_number, b_number >> 16), tl.join(b_sign, b_sign >> 16)
        b_low = _permuted(b_low, b_more_low, b_number)
        b_high = _permuted(b_high, b_more_high, b_number) ^ _permuted(0x8000, 0, b_sign)
    return halves(tl.join(_permuted(b_low, b_high, 0x5140), _permuted(b_low, b_high, 0x7362)))


@triton.jit
def load_coordinates(fields, base, b_rows, m_rows, start, WIDTH: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr):
    """See `Codec.load`. fields: norm, codes, signs or None, table."""
    p_norm, p_codes, p_signs, p_table = fields
    N: tl.constexpr = rows_of(p_norm, b_rows)
    CODES: tl.constexpr = 8 if BITS == 4 else 16
    NUMBERS: tl.constexpr = 1 << (BITS - 1)
    b_norm = _load_norms(p_norm, base, b_rows, m_rows)
    b_word = load_words(p_codes, base, b_rows, m_rows, start // CODES, WIDTH // CODES, D // CODES, 4, CODES, 4 * CODES)
    if BITS == 3:
        b_sign = load_along(p_signs, base, b_rows, m_rows, start // 32, WIDTH // 32, D // 32)
        b_word = _with_signs(b_word, b_sign, 2 if on_nvidia() else 3)
    elif BITS == 2:
        b_word = tl.join(b_word, b_word >> 2) & 0x33333333
    b_word = tl.reshape(b_word, (N, WIDTH // CODES, CODES // 8))
    if on_nvidia():
        b_half = _by_permutation(p_table, b_norm, b_word, NUMBERS)
    else:
        b_half = _by_bits(p_table, b_norm, b_word, 1 if BITS == 2 else 3, NUMBERS)
    return tl.reshape(b_half, (N, WIDTH))


@triton.jit
def _length(b_x, D: tl.constexpr):
    """The length of a row [D], its squares added as `kernels.norm.reference.ordered_sum` does."""
    b_sum = b_x * b_x
    for step in tl.static_range(16):
        if D >> step > 1:
            b_sum = tl.sum(tl.reshape(b_sum, (2, D >> (step + 1))), 0)
    return tl.sqrt_rn(b_sum)


@triton.jit
def store_coordinates(fields, row, b_x, D: tl.constexpr, BITS: tl.constexpr):
    """See `Codec.store`. fields: norm, codes, signs or None, table."""
    p_norm, p_codes, p_signs, p_table = fields
    b_length = _length(b_x, D)
    b_unit = tl.div_rn(b_x, tl.reshape(tl.maximum(b_length, _TINY), (1,)))
    b_number = tl.zeros((D,), tl.int32)
    b_level = tl.zeros((D,), tl.float32) + tl.load(p_table)
    for number in tl.static_range(1, 1 << (BITS - 1)):
        level = tl.load(p_table + number)
        m_more = tl.abs(b_unit) >= (level + tl.load(p_table + number - 1)) * 0.5
        b_number += m_more.to(tl.int32)
        b_level = tl.where(m_more, level, b_level)
    b_norm = tl.minimum(tl.div_rn(b_length, _length(b_level, D)), _LONGEST)
    tl.store(p_norm + row + tl.arange(0, 1), tl.reshape(b_norm, (1,)).to(tl.float16))
    b_negative = (b_unit < 0).to(tl.int32)
    # Places of codes and of signs as in `cache.sphere`.
    CODES: tl.constexpr = 8 if BITS == 4 else 16
    o_code = tl.arange(0, CODES)
    o_code = (o_code % 8 * (CODES // 8) + o_code // 8) * (32 // CODES)
    if BITS == 3:
        o_sign = tl.arange(0, 32)
        _store_words(p_signs, row, b_negative, o_sign % 8 * 4 + o_sign // 8 % 2 + o_sign // 16 * 2, D)
    else:
        b_number |= b_negative << (BITS - 1)
    _store_words(p_codes, row, b_number, o_code, D)


@triton.jit
def _store_words(p_field, row, b_x, o_place, D: tl.constexpr):
    """As `cache.words.pack`, of whole numbers [D]."""
    W: tl.constexpr = D // o_place.shape[0]
    b_word = tl.sum(tl.reshape(b_x, (W, o_place.shape[0])) << o_place[None, :], 1)
    tl.store(p_field + row * W + tl.arange(0, W), b_word)


def tables(bits: int, head_dim: int, device: str) -> tuple[Tensor, ...]:
    """The magnitudes of a code of `bits` bits, float32, ascending."""
    return (codebook(head_dim, bits, device).positive,)
