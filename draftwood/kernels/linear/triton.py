"""Products with a packed matrix on a GPU (README.md beside this file has the maths and the figures).

Letters: R rows of a decode pass, T tokens of a prefill pass, N outputs, K inputs, both padded; P programs.
In comments, a lane's 32 weights have the axes r p1 p0 h: word, and the places of a code in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from draftwood.kernels._math import power
from draftwood.kernels._rows import aligned, require, row_stride
from draftwood.kernels.layouts import OUTPUTS, STEP, Layout
from draftwood.kernels.linear import packing
from draftwood.kernels.linear.packing import PackedMatrix, high_places
from draftwood.kernels.scratch import expanded_shape, expanded_tiles, parts_of, product_programs, row_tiles


@dataclass(frozen=True)
class Tiling:
    """How a device goes through a matrix, whatever the rows of a pass and the type of its blocks.

    rows: of a row tile. outputs: of a program's tile. warps, stages: of a program; compact_stages: with a compact
    layout. joins: whether matrices of several block types are one launch. direct: whether a tile that one program does
    whole may go straight to the output.
    """

    rows: int
    outputs: int
    warps: int
    stages: int
    compact_stages: int
    joins: bool
    direct: bool

    def options(self, *layouts: Layout) -> dict[str, int]:
        """Of a launch. Halves take so much shared memory that three stages must do."""
        stages = self.compact_stages if any(layout.compact for layout in layouts) else self.stages
        halves = any(layout.bits == 16 for layout in layouts)
        return {"num_warps": self.warps, "num_stages": min(stages, 3) if halves else stages}


NVIDIA = Tiling(rows=8, outputs=128, warps=4, stages=4, compact_stages=4, joins=True, direct=True)
"""Outputs are the M of mma.m16n8k16 and rows its N; fewer than four warps of 16 outputs read the rows too often."""

AMD = Tiling(rows=16, outputs=128, warps=8, stages=2, compact_stages=1, joins=False, direct=False)
"""WMMA knows 16 rows only; four warps, fewer outputs, one stage (with a compact layout, two) or a second block type
spill at 64 rows, and two ways to store sums do at 16."""

_THREE_TILES, _THREE_REGISTERS = 3, 168
"""Row tiles up to which three programs of four warps fit a multiprocessor, with so many registers a lane."""

_SUM_ROWS = 4
"""Rows that a program adds the parts of."""

_CHUNK = 2048
"""Inputs that a program stages at once."""

_PREFILL = {"ROWS": 128, "OUTPUTS": 128, "INPUTS": 64, "GROUP": 8}
"""The tile of a prefill product."""

# Where a table of numbers has what.
_SHIFT, _MASK, _HIGH_MASK, _FACTOR, _ROTATE, _SELECT = (tl.constexpr(at) for at in (0, 2, 4, 6, 8, 16))
_OFFSET, _LANE_SHIFT, _PAIR_SHIFT, _ROW_SHIFT = (tl.constexpr(at) for at in (18, 19, 23, 31))

_COMPACT = 1 << 20
COMPACT_BIT = tl.constexpr(_COMPACT)
"""Of a `layout_number`, above all others."""

MINIMUM_UNIT = tl.constexpr(packing.MINIMUM_UNIT)


@triton.jit
def _assembled_codes(b_words, b_high, p_table, BITS: tl.constexpr, LANES: tl.constexpr):
    """Codes as bits of halves, fp16 [LANES, 4, 2, 2, 2], two at a time in PTX.

    A half below 2**-13 is its lowest eleven bits times 2**-24: a code needs no conversion, only a mask. Numbers that
    differ between the places of a code are loaded from the table: constants of `tl.arange` would keep Triton from
    moving the operand's layout up to the loads, and it would convert through shared memory.
    """
    o_two = tl.arange(0, 2)
    e_p1, e_p0 = o_two[None, None, :, None, None], o_two[None, None, None, :, None]
    if BITS == 16:
        # Zeros that differ in shape: Triton would take a move before the broadcast, and two words at a time.
        b_zero = tl.load(p_table + o_two[None, None, None, None, :])
        b_code = tl.inline_asm_elementwise(
            "or.b32 $0, $1, $3;", "=r,r,r,r,r",
            [tl.broadcast_to(b_words, (LANES, 4, 2, 2, 2)), tl.broadcast_to(b_zero, (LANES, 4, 2, 2, 2))],
            dtype=tl.float16, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        b_words = b_words >> tl.load(p_table + _SHIFT + (e_p0 if BITS == 8 else e_p1))
        b_words = tl.broadcast_to(b_words, (LANES, 4, 2, 2, 2))
        b_mask = tl.broadcast_to(tl.load(p_table + _MASK + e_p0), (LANES, 4, 2, 2, 2))
        if BITS == 5 or BITS == 6:
            e_r = tl.arange(0, 4)[None, :, None, None, None]
            b_turn = tl.broadcast_to(tl.load(p_table + _ROTATE + 2 * e_r + e_p1), (LANES, 4, 2, 1, 1))
            b_high = tl.inline_asm_elementwise(
                "shf.r.wrap.b32 $0, $1, $1, $2;", "=r,r,r", [b_high, b_turn], dtype=tl.int32, is_pure=True, pack=1
            )
            b_high = tl.broadcast_to(b_high, (LANES, 4, 2, 2, 2))
            b_high_mask = tl.broadcast_to(tl.load(p_table + _HIGH_MASK + e_p0), (LANES, 4, 2, 2, 2))
            b_code = tl.inline_asm_elementwise(
                "{ .reg .b32 t; and.b32 t, $1, $3; lop3.b32 $0, $5, $7, t, 0xea; }",
                "=r" + ",r" * 8, [b_words, b_mask, b_high, b_high_mask],
                dtype=tl.float16, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            b_code = tl.inline_asm_elementwise(
                "and.b32 $0, $1, $3;", "=r,r,r,r,r", [b_words, b_mask], dtype=tl.float16, is_pure=True, pack=2
            )
    return b_code


@triton.jit
def _portable_codes(b_words, b_high, BITS: tl.constexpr):
    """The same, code by code."""
    o_two = tl.arange(0, 2)
    e_p1, e_p0 = o_two[None, None, :, None, None], o_two[None, None, None, :, None]
    e_h = o_two[None, None, None, None, :]
    if BITS == 16:
        b_code = b_words >> (16 * e_h)
    elif BITS == 8:
        b_code = (b_words >> (8 * e_p0 + 16 * e_h)) & 255
    else:
        b_code = (b_words >> (8 * e_p1 + 16 * e_h)) & (15 << (4 * e_p0))
        if BITS == 5 or BITS == 6:
            # As `packing.high_places`.
            e_at = (2 * tl.arange(0, 4)[None, :, None, None, None] + e_p1) * (BITS - 4) % 8
            e_place = 8 * (e_at // 4) + e_at % 4 + 4 * e_p0 + 16 * e_h
            b_code = b_code | (((b_high >> e_place) & (BITS * 2 - 9)) << (4 + 4 * e_p0))
    return (b_code & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def _two_halves(b_first, b_second):
    """Float32 rounded to halves, two to an int32."""
    b_low = b_first.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return b_low | (b_second.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _low_half(b_word):
    """The half in the low bits of an int32, as float32."""
    return (b_word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _repeated(b_few, COUNT: tl.constexpr):
    """A block over and over, COUNT in all."""
    FEW: tl.constexpr = b_few.shape[0]
    return tl.reshape(tl.broadcast_to(b_few[None, :], (COUNT // FEW, FEW)), (COUNT,))


@triton.jit
def _multiplied_out(p_scales, p_superscales, p_table, block, o_lane, MINIMUM: tl.constexpr, OFFSET: tl.constexpr):
    """What the fast layout keeps for lanes, int32 each, made of a compact layout's scales and superscales.

    Up to the last rounding all of it is exact, as in `packing._halves`: products of halves and whole numbers. Shifts
    are few numbers, spread by registers: Triton would not load hundreds of them in the layout of the operand.
    """
    LANES: tl.constexpr = o_lane.shape[0]
    o_row, block = o_lane % 128 // 4, block.to(tl.int32)
    if MINIMUM:
        b_shift = _repeated(tl.load(p_table + _LANE_SHIFT + tl.arange(0, 4)), LANES)
        b_high_shift = _repeated(tl.load(p_table + _PAIR_SHIFT + tl.arange(0, 8)), LANES)
        b_low = tl.load(p_scales + block * 48 + o_row) >> b_shift
        b_high = tl.load(p_scales + block * 48 + (32 + o_row // 2)) >> b_high_shift
        b_units = tl.load(p_superscales + (block >> 1) * 32 + o_row)
        b_scale = ((b_low & 15) | (b_high & 3) << 4).to(tl.float32) * _low_half(b_units)
        b_lost = (b_scale - b_scale.to(tl.float16).to(tl.float32)) * (OFFSET * 2.0**-24)
        b_least = ((b_low >> 4 & 15) | (b_high & 12) << 2).to(tl.float32) * _low_half(b_units >> 16)
        b_pair = _two_halves(b_scale, b_least * -MINIMUM_UNIT + b_lost)
    else:
        b_shift = _repeated(tl.load(p_table + _LANE_SHIFT + 2 * tl.arange(0, 2)), LANES)
        b_unit_shift = _repeated(tl.load(p_table + _ROW_SHIFT + tl.arange(0, 8)), LANES)
        b_two = tl.load(p_scales + block * 64 + o_lane % 128 // 2) >> b_shift
        b_unit = _low_half(tl.load(p_superscales + (block >> 1) * 16 + o_row // 2) >> b_unit_shift)
        b_first, b_second = (b_two << 24 >> 24).to(tl.float32), (b_two << 16 >> 24).to(tl.float32)
        b_pair = _two_halves(b_first * b_unit, b_second * b_unit)
    return b_pair


@triton.jit
def _pairs(segment, block, o_lane, GROUP: tl.constexpr, MINIMUM: tl.constexpr, OFFSET: tl.constexpr,
           COMPACT: tl.constexpr):  # fmt: skip
    """Halves of the lanes' scales and, behind them, of the weights of code 0, two to an int32 where there are two."""
    _, _, p_scales, p_superscales, p_table = segment
    at = block * 128 + o_lane % 128
    LANES: tl.constexpr = o_lane.shape[0]
    GROUPS: tl.constexpr = 32 // GROUP
    if COMPACT:
        b_pair = _multiplied_out(p_scales, p_superscales, p_table, block, o_lane, MINIMUM, OFFSET)
    elif GROUPS == 2 and MINIMUM:
        b_pair = tl.load(p_scales + at[:, None] * 2 + tl.arange(0, 2)[None, :])
    elif GROUPS == 2 or MINIMUM:
        b_pair = tl.load(p_scales + at)
    else:
        b_pair = tl.load(p_scales.to(tl.pointer_type(tl.int16)) + at).to(tl.int32)
    if GROUPS == 2:
        b_pair = tl.broadcast_to(tl.reshape(b_pair, (LANES, 2 if MINIMUM else 1, 1)), (LANES, 2, 2))
    return tl.reshape(b_pair, (LANES, 4 if GROUPS == 2 else 1, 1, 1, 1))


@triton.jit
def _scaled(b_code, b_pair, p_table, BITS: tl.constexpr, GROUP: tl.constexpr, MINIMUM: tl.constexpr,
            OFFSET: tl.constexpr, LANES: tl.constexpr, ASSEMBLY: tl.constexpr):  # fmt: skip
    """Codes times the lanes' scales, plus what is added to code 0, rounded once."""
    o_two = tl.arange(0, 2)
    e_p0 = o_two[None, None, None, :, None]
    GROUPS: tl.constexpr = 32 // GROUP
    if ASSEMBLY:
        if GROUPS == 2 and not MINIMUM:
            b_select = tl.load(p_table + _SELECT + o_two)
            b_select = tl.broadcast_to(b_select[None, :, None], (LANES, 2, 2))
            b_select = tl.reshape(b_select, (LANES, 4, 1, 1, 1))
            b_scale = tl.inline_asm_elementwise(
                "prmt.b32 $0, $1, $1, $2;", "=r,r,r", [b_pair, b_select], dtype=tl.int32, is_pure=True, pack=1
            )
        else:
            b_scale = tl.inline_asm_elementwise(
                "prmt.b32 $0, $1, $1, 0x1010;", "=r,r", [b_pair], dtype=tl.int32, is_pure=True, pack=1
            )
        if MINIMUM:
            b_least = tl.inline_asm_elementwise(
                "prmt.b32 $0, $1, $1, 0x3232;", "=r,r", [b_pair], dtype=tl.int32, is_pure=True, pack=1
            )
        else:
            b_minus = tl.load(p_table + _OFFSET + tl.arange(0, 1)[None, None, None, None, :])
            b_least = tl.inline_asm_elementwise(
                "mul.rn.f16x2 $0, $1, $2;", "=r,r,r", [b_scale, b_minus], dtype=tl.int32, is_pure=True, pack=1
            )
        if BITS != 8:
            # The second of two codes lies four bits above the first one's place.
            b_factor = tl.load(p_table + _FACTOR + e_p0)
            b_scale = tl.inline_asm_elementwise(
                "mul.rn.f16x2 $0, $1, $2;", "=r,r,r", [b_scale, b_factor], dtype=tl.int32, is_pure=True, pack=1
            )
        b_weight = tl.inline_asm_elementwise(
            "fma.rn.f16x2 $0, $1, $2, $4;", "=r,r,r,r,r,r",
            [b_code, tl.broadcast_to(b_scale, (LANES, 4, 2, 2, 2)), tl.broadcast_to(b_least, (LANES, 4, 2, 2, 2))],
            dtype=tl.float16, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        if GROUPS == 2 and not MINIMUM:
            b_pair = b_pair >> (16 * (tl.arange(0, 4)[None, :, None, None, None] // 2))
        b_scale = (b_pair & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
        if MINIMUM:
            b_least = ((b_pair >> 16) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
        else:
            b_least = b_scale * (-OFFSET * 2.0**-24)
        if BITS != 8:
            b_scale = b_scale * (1.0 - 0.9375 * e_p0).to(tl.float16)
        b_weight = tl.fma(b_code, tl.broadcast_to(b_scale, b_code.shape), tl.broadcast_to(b_least, b_code.shape))
    return b_weight


@triton.jit
def _unpack(segment, block, o_lane, LAYOUT: tl.constexpr, LANES: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Weights of lanes o_lane % 128 of blocks `block`, int64 [LANES], as fp16 [LANES/4, 128] in the layout's order of
    inputs."""
    at = block * 128 + o_lane % 128
    p_words, p_high, _, _, p_table = segment
    BITS: tl.constexpr = LAYOUT % 32
    WORDS: tl.constexpr = 8 if BITS == 8 else (16 if BITS == 16 else 4)
    GROUP: tl.constexpr = LAYOUT // 32 % 64
    MINIMUM: tl.constexpr = LAYOUT // 2048 % 2 == 1
    OFFSET: tl.constexpr = LAYOUT // 4096 % 256
    if BITS != 16:
        b_pair = _pairs(segment, block, o_lane, GROUP, MINIMUM, OFFSET, LAYOUT >= COMPACT_BIT)
    b_words = tl.load(p_words + at[:, None] * WORDS + tl.arange(0, WORDS)[None, :])
    b_words = tl.reshape(b_words, (LANES, 4, 1 if WORDS == 4 else 2, 2 if WORDS == 16 else 1, 1))
    b_high = b_words
    if BITS == 5 or BITS == 6:
        HIGH: tl.constexpr = BITS - 4
        b_high = tl.load(p_high + at[:, None] * HIGH + tl.arange(0, HIGH)[None, :])
        b_high = tl.broadcast_to(tl.reshape(b_high, (LANES, HIGH, 1)), (LANES, HIGH, 4 // HIGH))
        b_high = tl.broadcast_to(tl.reshape(b_high, (LANES, 4, 1, 1, 1)), (LANES, 4, 2, 1, 1))
    if ASSEMBLY:
        b_weight = _assembled_codes(b_words, b_high, p_table, BITS, LANES)
    else:
        b_weight = _portable_codes(b_words, b_high, BITS)
    if BITS != 16:
        b_weight = _scaled(b_weight, b_pair, p_table, BITS, GROUP, MINIMUM, OFFSET, LANES, ASSEMBLY)
    b_weight = tl.permute(tl.reshape(b_weight, (LANES // 4, 4, 4, 2, 2, 2)), (0, 2, 3, 4, 1, 5))
    return tl.reshape(b_weight, (LANES // 4, 128))


@triton.jit
def _program_of(step, P, all_steps):
    """The program that does a step."""
    return ((step + 1) * P - 1) // all_steps


@triton.jit
def _count_parts(tile, N, K, P, OUTPUTS: tl.constexpr):
    """Parts of a tile of outputs, or of a block of tiles."""
    steps = K // 128
    all_steps = N // OUTPUTS * steps
    return _program_of(tile * steps + steps - 1, P, all_steps) - _program_of(tile * steps, P, all_steps) + 1


@triton.jit
def _add_next(b_sum, p_first, size, first, m_n, b_count, SOME: tl.constexpr):
    """The sum with parts first .. first + SOME - 1, of those that there are; size: of a part."""
    b_more = ()
    for part in tl.static_range(SOME):
        p_part = p_first + (first + part) * size
        b_more = b_more + (tl.load(p_part, mask=m_n & (first + part < b_count), other=0.0),)  # type: ignore[assignment]  # noqa: RUF005
    for part in tl.static_range(SOME):
        b_sum += b_more[part]
    return b_sum


@triton.jit
def _summed(product, row, rows, o_n, m_n, b_count, N, MOST: tl.constexpr):
    """Columns o_n of a row of a product, float32: the parts' sum in their order, times two powers of two.

    For kernels that read a product (`Parts`) instead of having it summed: the bits are those of `_add_parts`, but for
    the sign of a zero. rows: of the parts, padding included. o_n, m_n: padded columns and which of them are wanted,
    blocks of any shape. b_count: what `_count_parts` gives for their tiles, in a shape that broadcasts to theirs, so a
    caller counts once for columns that share a tile. MOST: parts of a tile at most. The product's last pointer is to
    the factors or, for a quarter of the bytes, to their exponents.
    """
    p_parts, p_x_factor, p_factor = product
    p_row, size = p_parts + row.to(tl.int64) * N + o_n, rows.to(tl.int64) * N
    b_sum = tl.load(p_row, mask=m_n, other=0.0)
    # Unrolled, the loads of all parts are on their way at once; more parts than this need too many registers.
    if MOST <= 13:
        for first in tl.static_range(1, MOST, 4):
            b_sum = _add_next(b_sum, p_row, size, first, m_n, b_count, min(4, MOST - first))
    else:
        for first in range(1, MOST, 4):
            b_sum = _add_next(b_sum, p_row, size, first, m_n, b_count, 4)
    b_factor = tl.load(p_factor + o_n, mask=m_n, other=0)
    if p_factor.dtype.element_ty == tl.uint8:
        b_factor = (b_factor.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    return b_sum * (tl.load(p_x_factor + row) * b_factor)


@triton.jit
def _tile(
    p_x, segment, p_parts, p_x_factor, p_factor, p_columns, p_out, blocks, tile, part, first, last, N, K, COUNT, REAL,
    LAYOUT: tl.constexpr, DIRECT: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Steps [first, last) of a tile of outputs, for all tiles of rows; blocks: the lanes' at the first step."""
    o_lane = tl.arange(0, OUTPUTS * 4)
    o_row, o_k, o_n = tl.arange(0, ROWS), tl.arange(0, 128), tl.arange(0, OUTPUTS)
    b_sums = (tl.zeros((OUTPUTS, ROWS), tl.float32),) * TILES
    for step in range(first, last):
        b_weight = _unpack(segment, blocks + step, o_lane, LAYOUT, OUTPUTS * 4, ASSEMBLY)
        p_step = p_x + step * 128 + o_row[None, :] * K + o_k[:, None]
        b_more = ()
        for t in tl.static_range(TILES):
            b_more = b_more + (tl.dot(b_weight, tl.load(p_step + t * ROWS * K), b_sums[t]),)  # type: ignore[assignment]  # noqa: RUF005
        b_sums = b_more
    if DIRECT and first == 0 and last == K // 128:
        o_out = tl.load(p_columns + 2 * tile) + o_n
        m_n = o_out < tl.load(p_columns + 2 * tile + 1)
        b_factor = tl.load(p_factor + tile * OUTPUTS + o_n)
        for t in tl.static_range(TILES):
            o_r = t * ROWS + o_row
            b_sum = b_sums[t] * (tl.load(p_x_factor + o_r)[None, :] * b_factor[:, None])
            tl.store(p_out + o_r[None, :] * REAL + o_out[:, None], b_sum, mask=m_n[:, None] & (o_r < COUNT)[None, :])
    else:
        p_to = p_parts + (part * (TILES * ROWS) + o_row[None, :]).to(tl.int64) * N + tile * OUTPUTS + o_n[:, None]
        for t in tl.static_range(TILES):
            tl.store(p_to + t * ROWS * N, b_sums[t])


@triton.jit
def _decode(
    p_x, segments, p_starts, p_parts, p_x_factor, p_factor, p_columns, p_out, N, K, P, COUNT, REAL,
    LAYOUTS: tl.constexpr, DIRECT: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    ASSEMBLY: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program p does steps [p S' / P, (p + 1) S' / P) of all tiles' S' and leaves a part a tile that it touches.

    segments: the matrices, whose tiles follow each other; p_starts: the first tile of each, and their number. DIRECT:
    whether a tile that one program does whole goes to the output instead.
    """
    if EARLY:
        gdc_launch_dependents()
    steps = K // 128
    all_steps = N // OUTPUTS * steps
    program = tl.program_id(0)
    at = (program * all_steps) // P
    end = ((program + 1) * all_steps) // P
    o_lane = tl.arange(0, OUTPUTS * 4)
    while at < end:
        tile = at // steps
        first = at - tile * steps
        last = tl.minimum(steps, first + end - at)
        part = program - _program_of(tile * steps, P, all_steps)
        for s in tl.static_range(len(LAYOUTS)):
            start = tl.load(p_starts + s)
            if len(LAYOUTS) == 1 or (tile >= start and tile < tl.load(p_starts + s + 1)):
                blocks = (((tile - start) * (OUTPUTS // 32) + o_lane // 128) * steps).to(tl.int64)
                _tile(
                    p_x, segments[s], p_parts, p_x_factor, p_factor, p_columns, p_out, blocks, tile, part, first, last,
                    N, K, COUNT, REAL, LAYOUTS[s], DIRECT, TILES, ROWS, OUTPUTS, ASSEMBLY,
                )  # fmt: skip
        at += last - first


@triton.jit
def _add_parts(
    p_parts, p_x_factor, p_factor, p_columns, p_out, N, K, P, COUNT, REAL, TILE_ROWS, DIRECT: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out[r, n] = the parts' sum in their order, times two powers of two; p_columns: where a tile goes, and its end.

    With DIRECT only the tiles that several programs did are left: each is found from where its second one began.
    """
    tile, o_row = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    steps = K // 128
    all_steps = N // OUTPUTS * steps
    begun = 0
    if DIRECT:
        begun = tile * all_steps // P
        tile = begun // steps
    first = _program_of(tile * steps, P, all_steps)
    count = _count_parts(tile, N, K, P, OUTPUTS)
    o_n = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    o_out = tl.load(p_columns + 2 * tile) + tl.arange(0, OUTPUTS)
    m_out = (o_row < COUNT)[:, None] & (o_out < tl.load(p_columns + 2 * tile + 1))[None, :]
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    if not DIRECT or (begun > tile * steps and tl.program_id(0) == first + 1):
        b_sum = tl.load(p_parts + o_row[:, None] * N + o_n[None, :])
        # Four loads on their way at a time.
        for first in range(1, count, 4):
            b_more = ()
            for part in tl.static_range(4):
                p_part = p_parts + ((first + part) * TILE_ROWS + o_row[:, None]) * N + o_n[None, :]
                b_more = b_more + (tl.load(p_part, mask=first + part < count, other=0.0),)  # type: ignore[assignment]  # noqa: RUF005
            for part in tl.static_range(4):
                b_sum += b_more[part]
        b_sum *= tl.load(p_x_factor + o_row)[:, None] * tl.load(p_factor + o_n)[None, :]
        tl.store(p_out + o_row[:, None].to(tl.int64) * REAL + o_out[None, :], b_sum, mask=m_out)


@triton.jit
def _stage(p_x, p_out, p_factor, rows, REAL: tl.constexpr, X_STRIDE: tl.constexpr, K: tl.constexpr,
           CHUNK: tl.constexpr):  # fmt: skip
    """A row as halves in the layout's order, divided by a power of two that brings its largest under 2**15."""
    row = tl.program_id(0).to(tl.int64)
    live = row < rows
    o_c = tl.arange(0, CHUNK)
    b_most = tl.zeros((CHUNK,), tl.float32)
    for start in range(0, REAL, CHUNK):
        b_x = tl.load(p_x + row * X_STRIDE + start + o_c, mask=(start + o_c < REAL) & live, other=0.0)
        b_most = tl.maximum(b_most, tl.abs(b_x.to(tl.float32)))
    factor, inverse = power(tl.max(b_most, 0))
    tl.store(p_factor + row, factor)
    for start in range(0, K, CHUNK):
        o_k = start + o_c
        place = o_k % 128
        o_from = o_k - place + place // 2 % 4 * 32 + place // 8 * 2 + place % 2
        b_x = tl.load(p_x + row * X_STRIDE + o_from, mask=(o_from < REAL) & live, other=0.0)
        tl.store(p_out + row * K + o_k, (b_x.to(tl.float32) * inverse).to(tl.float16), mask=o_k < K)


@triton.jit
def _expand(segment, p_out, K, TILE0, OUTPUTS: tl.constexpr, LAYOUT: tl.constexpr):
    """Halves [OUTPUTS of a tile, 128 of a step], the values that `_decode` multiplies with.

    Portable: the inner functions in PTX need the two codes of a pair side by side in a lane, which only the operand of
    a matrix instruction makes certain.
    """
    o_lane = tl.arange(0, OUTPUTS * 4)
    tile, step = tl.program_id(1), tl.program_id(0)
    steps = K // 128
    block = (((TILE0 + tile) * (OUTPUTS // 32) + o_lane // 128) * steps + step).to(tl.int64)
    b_weight = _unpack(segment, block, o_lane, LAYOUT, OUTPUTS * 4, False)
    o_n = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    tl.store(p_out + o_n[:, None].to(tl.int64) * K + step * 128 + tl.arange(0, 128)[None, :], b_weight)


@triton.jit
def _prefill(
    p_x, p_w, p_x_factor, p_factor, p_out, T, K, REAL, OUT_STRIDE, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out [T, REAL] = x [T, K] w [N, K]^T times two powers of two; tiles in groups that share rows of w in the L2."""
    row_tiles, tiles = tl.cdiv(T, ROWS), tl.cdiv(REAL, OUTPUTS)
    program = tl.program_id(0)
    group = program // (GROUP * tiles)
    size = tl.minimum(row_tiles - group * GROUP, GROUP)
    row_tile = group * GROUP + program % (GROUP * tiles) % size
    tile = program % (GROUP * tiles) // size
    o_t, o_n = row_tile * ROWS + tl.arange(0, ROWS), tile * OUTPUTS + tl.arange(0, OUTPUTS)
    o_k = tl.arange(0, INPUTS)
    b_sum = tl.zeros((ROWS, OUTPUTS), tl.float32)
    p_left = p_x + (o_t % T)[:, None].to(tl.int64) * K + o_k[None, :]
    p_right = p_w + o_n[None, :].to(tl.int64) * K + o_k[:, None]
    for _ in range(0, K, INPUTS):
        b_sum = tl.dot(tl.load(p_left), tl.load(p_right), b_sum)
        p_left += INPUTS
        p_right += INPUTS
    m_t, m_n = o_t < T, o_n < REAL
    b_sum *= tl.load(p_x_factor + o_t, mask=m_t)[:, None] * tl.load(p_factor + o_n, mask=m_n)[None, :]
    tl.store(p_out + o_t[:, None].to(tl.int64) * OUT_STRIDE + o_n[None, :], b_sum, mask=m_t[:, None] & m_n[None, :])


def has_assembly(device: torch.device) -> bool:
    """Whether the inner functions in PTX can be used; the portable ones give the same bits."""
    return device.type == "cuda" and torch.version.hip is None


@cache
def starts_early(device: torch.device) -> bool:
    """Whether a kernel can start while the one before it ends (`launch_pdl`), and wait inside for what that writes."""
    return has_assembly(device) and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def _table(layout: Layout, device: torch.device) -> Tensor:
    """The numbers that `_unpack` loads, int32."""
    if layout.bits == 16:
        return torch.zeros(2, dtype=torch.int32, device=device)
    width = max(layout.bits - 4, 0)
    mask = [0x00FF00FF] * 2 if layout.bits == 8 else [0x000F000F, 0x00F000F0]
    field = (1 << width) - 1
    high_mask = [field << 4 | field << 20, field << 8 | field << 24]
    places = high_places(width)
    at = [places[m % len(places)] for m in range(16)]
    rotate = [(at[4 * r + 2 * p1] - 4) % 32 for r in range(4) for p1 in (0, 1)]
    one, sixteenth, minus_offset = 0x3C003C00, 0x2C002C00, 0x80008000 | layout.offset * 0x10001
    numbers = [0, 8, *mask, *high_mask, one, sixteenth, *rotate, 0x1010, 0x3232, minus_offset]
    numbers += [0, 8, 16, 24, *range(0, 32, 4), *[0] * 4, *[16] * 4]
    return torch.tensor(numbers, dtype=torch.int64).to(torch.int32).to(device)


@cache
def _processors(device: torch.device) -> int:
    """Multiprocessors; a handful where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def tiling_of(device: torch.device) -> Tiling:
    """The device's tiling."""
    return AMD if device.type == "cuda" and torch.version.hip else NVIDIA


def programs_of(outputs: int, inputs: int, device: torch.device) -> int:
    """Programs that a matrix [outputs, inputs] is split over, by its padded shape and the device alone."""
    return product_programs(outputs // tiling_of(device).outputs, inputs // STEP, _processors(device))


def padded_rows(rows: int, tiling: Tiling) -> tuple[int, int]:
    """Row tiles of a pass of 1 to 64 rows, and the rows that they hold."""
    tiles = row_tiles(rows, tiling.rows)
    return tiles, tiles * tiling.rows


def stage(x: Tensor, inputs: int, rows: int) -> tuple[Tensor, Tensor]:
    """x [R, K], any float type, as halves [rows, inputs] in the layout's order and its rows' factors float32 [rows].

    A row's factor is a power of two by its own largest value, so a value of 3e5 neither overflows nor dims other rows.
    Rows behind R are zeros.
    """
    x = aligned(x)
    out = torch.empty(rows, inputs, dtype=torch.float16, device=x.device)
    factor = torch.empty(rows, dtype=torch.float32, device=x.device)
    _stage[(rows,)](
        x, out, factor, len(x), REAL=x.shape[1], X_STRIDE=row_stride(x), K=inputs, CHUNK=_CHUNK, num_warps=4
    )
    return out, factor


@dataclass(frozen=True)
class Joined:
    """Matrices with one input whose outputs follow each other, multiplied in one launch.

    factor: their powers of two, float32 [N]. exponents: those of float32, uint8 [N]; 0, so zeros as outputs, where all
    weights of a row lie below 2**-111. starts: int32, the first tile of each, and the number of tiles. columns:
    int32 [tiles, 2], the column that a tile begins at and the one that its matrix ends at, padding left out.
    """

    matrices: tuple[PackedMatrix, ...]
    factor: Tensor
    exponents: Tensor
    starts: Tensor
    columns: Tensor

    @property
    def padded(self) -> tuple[int, int]:
        """N and K."""
        return len(self.factor), self.matrices[0].padded[1]

    @property
    def out_features(self) -> int:
        """Columns of a product."""
        return sum(matrix.out_features for matrix in self.matrices)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, without the tiles' places and the exponents, one an output."""
        return sum(matrix.nbytes for matrix in self.matrices)


def join(matrices: Sequence[PackedMatrix]) -> Joined:
    """Matrices of any block types with the same number of inputs."""
    starts, columns, column = [0], [], 0
    for matrix in matrices:
        tiles = matrix.padded[0] // OUTPUTS
        starts.append(starts[-1] + tiles)
        columns += [(column + tile * OUTPUTS, column + matrix.out_features) for tile in range(tiles)]
        column += matrix.out_features
    device = matrices[0].factor.device
    factor = matrices[0].factor
    if len(matrices) > 1:
        factor = torch.cat([matrix.factor for matrix in matrices])
        parts = factor.split([matrix.padded[0] for matrix in matrices])
        matrices = [replace(matrix, factor=part) for matrix, part in zip(matrices, parts, strict=True)]
    places = (torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in (starts, columns))
    return Joined(tuple(matrices), factor, (factor.view(torch.int32) >> 23).byte(), *places)


def _segment(matrix: PackedMatrix) -> tuple[Tensor, ...]:
    """Pointers of a matrix, its words in place of what it has not, and the table."""
    words, scales = matrix.words, matrix.scales
    if scales is not None and matrix.layout.scale_bits > 16:
        scales = scales.view(torch.int32)
    others = (words if tensor is None else tensor for tensor in (matrix.high, scales, matrix.superscales))
    return words, *others, _table(matrix.layout, words.device)


def layout_number(layout: Layout) -> int:
    """What the kernels are compiled for, in one number, as Triton takes no tuple of tuples."""
    number = layout.bits + (layout.group << 5) + (layout.minimum << 11) + (layout.offset << 12)
    return number | _COMPACT if layout.compact else number


@dataclass(frozen=True)
class Staged:
    """Rows as a product takes them.

    halves: float16 [rows, K], padding included, in the layout's order. factor: float32 [rows], the power of two that
    each row was divided by. count: rows without padding.
    """

    halves: Tensor
    factor: Tensor
    count: int


@dataclass(frozen=True)
class Parts:
    """A product whose tiles are still in parts, for kernels that add them while they read (`_summed`).

    parts: float32 [most, rows, N], padding included; a tile of outputs has `_count_parts` of them, the rest is not
    written. x_factor: float32 [rows]. count: rows without padding. programs: that the matrices were split over.
    """

    parts: Tensor
    joined: Joined
    x_factor: Tensor
    count: int
    programs: int

    @property
    def pointers(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `_summed` takes as the product."""
        return self.parts, self.x_factor, self.joined.factor

    def _place(self, column: int) -> int:
        """The padded place of a column."""
        begin = place = 0
        for matrix in self.joined.matrices:
            if column < begin + matrix.out_features:
                return place + column - begin
            begin += matrix.out_features
            place += matrix.padded[0]
        raise ValueError(f"a product of {begin} columns has no column {column}")

    def columns(self, first: int, last: int) -> Columns:
        """Columns [first, last). ValueError if the matrices' padding lies between them."""
        place, end = self._place(first), self._place(last - 1) + 1
        if first >= last or end - place != last - first:
            raise ValueError(f"columns {first} to {last} are none or of several padded matrices; take them one by one")
        return Columns(self, place, last - first)

    def tensor(self) -> Tensor:
        """The product itself, float32 [count, N] without padding."""
        out = torch.empty(self.count, self.joined.out_features, dtype=torch.float32, device=self.parts.device)
        _add(self, out, direct=False)
        return out


@dataclass(frozen=True)
class Columns:
    """Some outputs of a product: `runs` times `width` of them, `stride` apart, from padded column `first` on."""

    parts: Parts
    first: int
    width: int
    runs: int = 1
    stride: int = 0

    def every(self, stride: int, first: int, last: int) -> Columns:
        """Of every `stride` of these columns, [first, last): the gates of heads that have D queries, then D gates, are
        `every(2 * D, D, 2 * D)`. ValueError if the columns do not divide so."""
        if self.runs > 1 or self.width % stride or not 0 <= first < last <= stride:
            raise ValueError(f"{self.runs} x {self.width} columns have no [{first}, {last}) in every {stride}")
        return Columns(self.parts, self.first + first, last - first, self.width // stride, stride)


def _add(parts: Parts, out: Tensor, direct: bool) -> None:
    """Sum into out; direct: but for the tiles that are there already."""
    (outputs, inputs), rows = parts.joined.padded, parts.parts.shape[1]
    tiling, early = tiling_of(out.device), starts_early(out.device)
    tiles_or_programs = parts.programs if direct else outputs // tiling.outputs
    _add_parts[(tiles_or_programs, triton.cdiv(parts.count, _SUM_ROWS))](
        *parts.pointers, parts.joined.columns, out, outputs, inputs, parts.programs, parts.count, out.shape[1], rows,
        DIRECT=direct, ROWS=_SUM_ROWS, OUTPUTS=tiling.outputs, EARLY=early, num_warps=4, launch_pdl=early,
    )  # fmt: skip


def _multiply(staged: Staged, joined: Joined, out: Tensor | None) -> Parts:
    """The product in parts; with out float32 [count, N], tiles that one program does whole go there instead."""
    (outputs, inputs), tiling, device = joined.padded, tiling_of(staged.halves.device), staged.halves.device
    require(staged.halves.shape[1] == inputs, f"{staged.halves.shape[1]} staged inputs for a matrix of {inputs}")
    tiles, rows = padded_rows(staged.count, tiling)
    programs = programs_of(outputs, inputs, device)
    most = parts_of(outputs // tiling.outputs, inputs // STEP, programs)
    parts = torch.empty(most, rows, outputs, dtype=torch.float32, device=device)
    layouts = [matrix.layout for matrix in joined.matrices]
    numbers = tuple(layout_number(layout) for layout in layouts)
    options = tiling.options(*layouts)
    if programs > 2 * _processors(device) and tiles <= _THREE_TILES and has_assembly(device):
        options["maxnreg"] = _THREE_REGISTERS
    _decode[(programs,)](
        staged.halves, tuple(_segment(matrix) for matrix in joined.matrices), joined.starts, parts, staged.factor,
        joined.factor, joined.columns, parts if out is None else out, outputs, inputs, programs, staged.count,
        joined.out_features, LAYOUTS=numbers, DIRECT=out is not None, TILES=tiles, ROWS=tiling.rows,
        OUTPUTS=tiling.outputs, ASSEMBLY=has_assembly(device), EARLY=starts_early(device), **options,
    )  # fmt: skip
    return Parts(parts, joined, staged.factor, staged.count, programs)


def multiply(staged: Staged, joined: Joined) -> Parts:
    """Staged rows of a decode pass times the matrices, left in parts; ValueError if the inputs do not match."""
    return _multiply(staged, joined, None)


def product(staged: Tensor, x_factor: Tensor, joined: Joined, count: int) -> Tensor:
    """What `stage` made of `count` rows of a decode pass -> float32 [count, N]."""
    rows, (outputs, inputs), device = Staged(staged, x_factor, count), joined.padded, staged.device
    tiling = tiling_of(device)
    if not tiling.direct or outputs // tiling.outputs <= 2 * programs_of(outputs, inputs, device):
        return multiply(rows, joined).tensor()
    out = torch.empty(count, joined.out_features, dtype=torch.float32, device=device)
    _add(_multiply(rows, joined, out), out, direct=True)
    return out


def staged(x: Tensor | Staged, joined: Joined) -> Staged:
    """Rows of a decode pass [R, K] as the matrices take them; what is staged already stays as it is."""
    if isinstance(x, Staged):
        return x
    _, rows = padded_rows(len(x), tiling_of(x.device))
    return Staged(*stage(x, joined.padded[1], rows), len(x))


def decode(x: Tensor, joined: Joined) -> Tensor:
    """x [R, K], 1 <= R <= 64, any float type -> float32 [R, N]; a row's bits depend on that row alone."""
    _, rows = padded_rows(len(x), tiling_of(x.device))
    return product(*stage(x, joined.padded[1], rows), joined, len(x))


def prefill(x: Tensor, joined: Joined) -> Tensor:
    """x [T, K], any float type -> float32 [T, N]; a row's bits do not depend on T.

    The matrices are expanded to halves, some tiles of outputs at a time, and multiplied in one fixed shape of tile.
    """
    inputs = joined.padded[1]
    staged, x_factor = stage(x, inputs, len(x))
    out = torch.empty(len(x), joined.out_features, dtype=torch.float32, device=x.device)
    chunk = expanded_tiles(inputs)
    halves = torch.empty(expanded_shape(*joined.padded), dtype=torch.float16, device=x.device)
    column = 0
    for matrix in joined.matrices:
        tiles = matrix.padded[0] // OUTPUTS
        for tile in range(0, tiles, chunk):
            count = min(chunk, tiles - tile)
            first = tile * OUTPUTS
            real = min(count * OUTPUTS, matrix.out_features - first)
            _expand[(inputs // STEP, count)](
                _segment(matrix), halves, inputs, tile, OUTPUTS=OUTPUTS, LAYOUT=layout_number(matrix.layout),
                num_warps=8,
            )  # fmt: skip
            grid = triton.cdiv(len(x), _PREFILL["ROWS"]) * triton.cdiv(real, _PREFILL["OUTPUTS"])
            _prefill[(grid,)](
                staged, halves, x_factor, matrix.factor[first:], out[:, column + first :], len(x), inputs, real,
                joined.out_features, **_PREFILL, num_warps=8, num_stages=3,
            )  # fmt: skip
        column += matrix.out_features
    return out
