"""The codecs of tq4_0, tq3_0 and tq2_0: fields norm, codes and, of tq3_0, signs (cache/sphere.py has the format).

A row has few magnitudes. They are multiplied by its norm in float32 and rounded to halves once a row, and a value is
one of them with its sign, chosen by the bits of its code, two values to a register: fields that are half a word apart
fall into the two halves of one. NVIDIA's byte permutation looks four codes up at once, which is worth most of the
instructions of tq4_0 (README.md).
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
def _by_bits(p_table, b_norm, b_word, first, FIELD: tl.constexpr, COUNT: tl.constexpr, NUMBERS: tl.constexpr):
    """COUNT fields of words [n, W, S], from field `first` on, as values, fp16 [n, W, S, COUNT].

    FIELD: bits of one, the sign above the number of one of NUMBERS magnitudes.
    """
    # The first half of the fields from bit 0 on, the others from 16: a shift brings a pair to the bottoms of halves.
    if COUNT * FIELD < 32:
        HALF: tl.constexpr = COUNT // 2 * FIELD
        b_word = b_word >> (first * FIELD)
        b_word = (b_word & ((1 << HALF) - 1)) | ((b_word >> HALF) & ((1 << HALF) - 1)) << 16
    b_code = b_word
    for step in tl.static_range(1, 5):
        if COUNT >> step > 1:
            b_code = tl.join(b_code, b_code >> (FIELD * (COUNT >> (step + 1))))
    b_code = tl.reshape(b_code, (b_word.shape[0], b_word.shape[1], b_word.shape[2], COUNT // 2))
    if NUMBERS == 8:
        b_upper = _one_of_four(p_table, b_norm, b_code, 4)
        b_pair = _chosen(_one_of_four(p_table, b_norm, b_code, 0), b_upper, b_code, 2)
    elif NUMBERS == 4:
        b_pair = _one_of_four(p_table, b_norm, b_code, 0)
    else:
        b_pair = _one_of_two(p_table, b_norm, b_code, 0)
    b_half = halves(b_pair ^ (b_code << (16 - FIELD) & -0x7FFF8000))
    return tl.reshape(tl.permute(b_half, (0, 1, 2, 4, 3)), (b_word.shape[0], b_word.shape[1], b_word.shape[2], COUNT))


@triton.jit
def _permuted(b_first, b_second, b_places):
    """Four of the eight bytes of two words, by the nibbles of the low half of `b_places`, on NVIDIA."""
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [b_first, b_second, b_places], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _bytes(p_table, b_norm, FIRST: tl.constexpr):
    """Low and high bytes of four magnitudes from number FIRST on, two int32 [n, 1, 1, 1]."""
    b_0, b_1 = _bits(p_table, b_norm, FIRST), _bits(p_table, b_norm, FIRST + 1)
    b_2, b_3 = _bits(p_table, b_norm, FIRST + 2), _bits(p_table, b_norm, FIRST + 3)
    b_low = (b_0 & 255) | (b_1 & 255) << 8 | (b_2 & 255) << 16 | b_3 << 24
    return b_low, b_0 >> 8 | (b_1 >> 8) << 8 | (b_2 >> 8) << 16 | (b_3 >> 8) << 24


@triton.jit
def _by_permutation(p_table, b_norm, b_word, NUMBERS: tl.constexpr):
    """As `_by_bits`, all eight fields of four bits and four or eight magnitudes, by byte permutations of NVIDIA: values
    fp16 [n, 8, S, W].

    Eight bytes to choose from are four magnitudes with their negatives, whose sign is at bit 2 of a field, or eight.
    Fields of two neighbouring words take turns, so that four lookups are two pairs of neighbouring values.
    """
    b_low, b_high = _bytes(p_table, b_norm, 0)
    N: tl.constexpr = b_word.shape[0]
    W: tl.constexpr = b_word.shape[1]
    S: tl.constexpr = b_word.shape[2]
    b_one, b_other = tl.split(tl.permute(tl.reshape(b_word, (N, W // 2, 2, S)), (0, 1, 3, 2)))
    b_even = (b_one & 0x0F0F0F0F) | ((b_other << 4) & -0x0F0F0F10)
    b_odd = ((b_one >> 4) & 0x0F0F0F0F) | (b_other & -0x0F0F0F10)
    # Fields 0 2 4 6 and 1 3 5 7 of both words; then the first two and the last two of them.
    b_eight = tl.join(b_even, b_odd)
    if NUMBERS == 4:
        b_four = tl.join(b_eight, b_eight >> 16)
        b_low, b_high = b_low[:, :, :, :, None], b_high[:, :, :, :, None]
        b_low = _permuted(b_low, b_low, b_four)
        b_high = _permuted(b_high, b_high ^ -0x7F7F7F80, b_four)
    else:
        b_more_low, b_more_high = _bytes(p_table, b_norm, 4)
        b_low, b_high = b_low[:, :, :, :, None], b_high[:, :, :, :, None]
        b_more_low, b_more_high = b_more_low[:, :, :, :, None], b_more_high[:, :, :, :, None]
        b_number, b_sign = b_eight & 0x77777777, (b_eight >> 3) & 0x11111111
        b_number, b_sign = tl.join(b_number, b_number >> 16), tl.join(b_sign, b_sign >> 16)
        b_low = _permuted(b_low, b_more_low, b_number)
        b_high = _permuted(b_high, b_more_high, b_number) ^ _permuted(0x8000, 0, b_sign)
    b_pair = tl.join(_permuted(b_low, b_high, 0x5140), _permuted(b_low, b_high, 0x7362))
    # [n, W / 2, S, odd, last two, second, word], the number of a field being 4 last + 2 second + odd.
    b_half = tl.permute(halves(b_pair), (0, 4, 5, 3, 2, 1, 6))
    return tl.reshape(b_half, (N, 8, S, W))


@triton.jit
def load_coordinates(fields, base, b_rows, m_rows, start, WIDTH: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr):
    """See `Codec.load`. fields: norm, codes, signs or None, table."""
    p_norm, p_codes, p_signs, p_table = fields
    N: tl.constexpr = rows_of(p_norm, b_rows)
    W: tl.constexpr = D * (BITS // 2 * 2) // 32
    FIELD: tl.constexpr = 2 if BITS == 2 else 4
    SIDES: tl.constexpr = 2 if BITS == 3 else 1
    COUNT: tl.constexpr = WIDTH // W // SIDES
    PERMUTES: tl.constexpr = BITS > 2 and WIDTH == D and on_nvidia()
    b_norm = _load_norms(p_norm, base, b_rows, m_rows)
    b_word = load_words(p_codes, base, b_rows, m_rows, 0, W, W)
    if BITS == 3:
        b_sign = load_along(p_signs, base, b_rows, m_rows, 0, W // 2, W // 2)
        b_word = _with_signs(b_word, b_sign, 2 if PERMUTES else 3)
    b_word = tl.reshape(b_word, (N, W, SIDES))
    if PERMUTES:
        b_half = _by_permutation(p_table, b_norm, b_word, 1 << (BITS - 1))
    else:
        b_half = _by_bits(p_table, b_norm, b_word, start // (W * SIDES), FIELD, COUNT, 1 << (BITS - 1))
        b_half = tl.permute(b_half, (0, 3, 2, 1))
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
    if BITS == 3:
        _store_words(p_codes, row, b_number, 2, 16, D)
        _store_signs(p_signs, row, b_negative, D)
    else:
        _store_words(p_codes, row, b_number | b_negative << (BITS - 1), BITS, 32 // BITS, D)


@triton.jit
def _store_signs(p_field, row, b_x, D: tl.constexpr):
    """As `cache.sphere._pack_signs`."""
    WORDS: tl.constexpr = D // 32
    b_x = tl.reshape(tl.permute(tl.reshape(b_x, (16, WORDS, 2)), (1, 0, 2)), (WORDS, 32))
    # In a row: field i, then the word of two.
    o_sign = tl.arange(0, 32)
    o_place = o_sign // 4 * 4 + o_sign // 2 % 2 + o_sign % 2 * 2
    tl.store(p_field + row * WORDS + tl.arange(0, WORDS), tl.sum(b_x << o_place[None, :], 1))


@triton.jit
def _store_words(p_field, row, b_x, BITS: tl.constexpr, FIELDS: tl.constexpr, D: tl.constexpr):
    """As `cache.words.pack`, of whole numbers [D]."""
    W: tl.constexpr = D // FIELDS
    b_word = tl.sum(tl.reshape(b_x, (FIELDS, W)) << (tl.arange(0, FIELDS) * BITS)[:, None], 0)
    tl.store(p_field + row * W + tl.arange(0, W), b_word.to(p_field.dtype.element_ty))


def tables(bits: int, head_dim: int, device: str) -> tuple[Tensor, ...]:
    """The magnitudes of a code of `bits` bits, float32, ascending."""
    return (codebook(head_dim, bits, device).positive,)
