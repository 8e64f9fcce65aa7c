"""Products with a packed matrix on a GPU (README.md beside this file has the maths and the figures).

Letters: R rows of a decode pass, T tokens of a prefill pass, N outputs, K inputs, both padded; P programs.
In comments, a lane's 32 weights have the axes r p1 p0 h: word, and the places of a code in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.kernels._rows import aligned, row_stride
from draftwood.kernels.layouts import OUTPUTS, STEP, Layout
from draftwood.kernels.linear.packing import PackedMatrix


@dataclass(frozen=True)
class Tiling:
    """How a device goes through a matrix, whatever the rows of a pass and the type of its blocks.

    rows: of a row tile. outputs: of a program's tile. warps, stages: of a program.
    """

    rows: int
    outputs: int
    warps: int
    stages: int

    def options(self, layout: Layout) -> dict[str, int]:
        """Of a launch. Halves take so much shared memory that two stages must do."""
        return {"num_warps": self.warps, "num_stages": min(self.stages, 2) if layout.bits == 16 else self.stages}


NVIDIA = Tiling(rows=8, outputs=128, warps=4, stages=4)
"""Outputs are the M of mma.m16n8k16 and rows its N; fewer than four warps of 16 outputs read the rows too often."""

AMD = Tiling(rows=16, outputs=128, warps=8, stages=2)
"""WMMA knows 16 rows only; four warps, fewer outputs or one stage spill at 64 rows."""

TILES = (1, 2, 3, 4, 6, 8)
"""Row tiles that a pass can have; each is compiled once a layout."""

_CHUNK = 2048
"""Inputs that a program stages at once."""

EXPANDED = 1 << 25
"""Weights of a matrix that prefill has as halves at a time (64 MiB)."""

_PREFILL = {"ROWS": 128, "OUTPUTS": 128, "INPUTS": 64, "GROUP": 8}
"""The tile of a prefill product."""

# Where a table of numbers has what.
_SHIFT, _MASK, _FACTOR, _OFFSET, _HIGH_MASK, _ROTATE, _SELECT = (tl.constexpr(at) for at in (0, 2, 4, 6, 8, 10, 26))
_PLAIN_SHIFT, _PLAIN_HIGH = tl.constexpr(28), tl.constexpr(36)


@triton.jit
def _assembled_codes(b_words, b_high, p_table, BITS: tl.constexpr, LANES: tl.constexpr):
    """Codes less the offset, fp16 [LANES, 4, 2, 2, 2], two at a time in PTX.

    0x6400 is the half 1024, whose last bit is worth 1: a code put into its low bits is 1024 + code. Numbers that differ
    between the places of a code are loaded from the table: constants of `tl.arange` would keep Triton from moving the
    operand's layout up to the loads, and it would convert through shared memory.
    """
    o_two = tl.arange(0, 2)
    e_p1, e_p0 = o_two[None, None, :, None, None], o_two[None, None, None, :, None]
    if BITS == 16:
        b_code = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r,r", [tl.broadcast_to(b_words, (LANES, 4, 2, 2, 2))],
            dtype=tl.float16, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        b_words = b_words >> tl.load(p_table + _SHIFT + (e_p0 if BITS == 8 else e_p1))
        b_words = tl.broadcast_to(b_words, (LANES, 4, 2, 2, 2))
        b_mask = tl.broadcast_to(tl.load(p_table + _MASK + e_p0), (LANES, 4, 2, 2, 2))
        b_factor = tl.broadcast_to(tl.load(p_table + _FACTOR + e_p0), (LANES, 4, 2, 2, 2))
        b_offset = tl.broadcast_to(tl.load(p_table + _OFFSET + e_p0), (LANES, 4, 2, 2, 2))
        if BITS == 5 or BITS == 6:
            e_r = tl.arange(0, 4)[None, :, None, None, None]
            b_turn = tl.broadcast_to(tl.load(p_table + _ROTATE + 4 * e_r + 2 * e_p1 + e_p0), (LANES, 4, 2, 2, 2))
            b_high_mask = tl.broadcast_to(tl.load(p_table + _HIGH_MASK + e_p0), (LANES, 4, 2, 2, 2))
            b_code = tl.inline_asm_elementwise(
                "{ .reg .b32 t, u; lop3.b32 t, $1, $3, 0x64006400, 0xea; shf.r.wrap.b32 u, $9, $9, $11; "
                "lop3.b32 t, u, $13, t, 0xea; fma.rn.f16x2 $0, t, $5, $7; }",
                "=r" + ",r" * 14, [b_words, b_mask, b_factor, b_offset, b_high, b_turn, b_high_mask],
                dtype=tl.float16, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            b_code = tl.inline_asm_elementwise(
                "{ .reg .b32 t; lop3.b32 t, $1, $3, 0x64006400, 0xea; fma.rn.f16x2 $0, t, $5, $7; }",
                "=r" + ",r" * 8, [b_words, b_mask, b_factor, b_offset],
                dtype=tl.float16, is_pure=True, pack=2,
            )  # fmt: skip
    return b_code


@triton.jit
def _portable_codes(b_words, b_high, p_table, BITS: tl.constexpr, OFFSET: tl.constexpr):
    """The same, code by code."""
    o_two = tl.arange(0, 2)
    e_h = o_two[None, None, None, None, :]
    if BITS == 16:
        b_code = ((b_words >> (16 * e_h)) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    else:
        e_place = 4 * o_two[None, None, :, None, None] + 2 * o_two[None, None, None, :, None] + e_h
        b_code = (b_words >> tl.load(p_table + _PLAIN_SHIFT + e_place)) & (255 if BITS == 8 else 15)
        if BITS == 5 or BITS == 6:
            b_place = tl.load(p_table + _PLAIN_HIGH + 8 * tl.arange(0, 4)[None, :, None, None, None] + e_place)
            b_code = b_code | (((b_high >> b_place) & (BITS * 2 - 9)) << 4)
        b_code = (b_code - OFFSET).to(tl.float16)
    return b_code


@triton.jit
def _scaled(b_code, p_scales, p_table, at, GROUP: tl.constexpr, MINIMUM: tl.constexpr, LANES: tl.constexpr,
            ASSEMBLY: tl.constexpr):  # fmt: skip
    """Codes times the scales of lanes `at`, plus what types with minima add, rounded once."""
    o_two = tl.arange(0, 2)
    # Halves of scales, and of offsets behind them, two to a word where there are two.
    GROUPS: tl.constexpr = 32 // GROUP
    if GROUPS == 1 and not MINIMUM:
        b_pair = tl.load(p_scales.to(tl.pointer_type(tl.int16)) + at).to(tl.int32)
        b_pair = tl.reshape(b_pair, (LANES, 1, 1, 1, 1))
    elif GROUPS == 1:
        b_pair = tl.reshape(tl.load(p_scales + at), (LANES, 1, 1, 1, 1))
    elif MINIMUM:
        b_pair = tl.load(p_scales + at[:, None] * 2 + o_two[None, :])
        b_pair = tl.broadcast_to(tl.reshape(b_pair, (LANES, 2, 1)), (LANES, 2, 2))
        b_pair = tl.reshape(b_pair, (LANES, 4, 1, 1, 1))
    else:
        b_pair = tl.broadcast_to(tl.reshape(tl.load(p_scales + at), (LANES, 1, 1)), (LANES, 2, 2))
        b_pair = tl.reshape(b_pair, (LANES, 4, 1, 1, 1))
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
        b_scale = tl.broadcast_to(b_scale, (LANES, 4, 2, 2, 2))
        if MINIMUM:
            b_least = tl.inline_asm_elementwise(
                "prmt.b32 $0, $1, $1, 0x3232;", "=r,r", [b_pair], dtype=tl.int32, is_pure=True, pack=1
            )
            b_weight = tl.inline_asm_elementwise(
                "fma.rn.f16x2 $0, $1, $2, $4;", "=r,r,r,r,r,r",
                [b_code, b_scale, tl.broadcast_to(b_least, (LANES, 4, 2, 2, 2))],
                dtype=tl.float16, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            b_weight = tl.inline_asm_elementwise(
                "mul.rn.f16x2 $0, $1, $2;", "=r,r,r,r", [b_code, b_scale],
                dtype=tl.float16, is_pure=True, pack=2,
            )  # fmt: skip
    else:
        if GROUPS == 2 and not MINIMUM:
            b_pair = b_pair >> (16 * (tl.arange(0, 4)[None, :, None, None, None] // 2))
        b_scale = (b_pair & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
        if MINIMUM:
            b_least = ((b_pair >> 16) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
            b_weight = tl.fma(b_code, tl.broadcast_to(b_scale, b_code.shape), tl.broadcast_to(b_least, b_code.shape))
        else:
            b_weight = b_code * b_scale
    return b_weight


@triton.jit
def _unpack(p_words, p_high, p_scales, p_table, at, BITS: tl.constexpr, GROUP: tl.constexpr, MINIMUM: tl.constexpr,
            OFFSET: tl.constexpr, LANES: tl.constexpr, ASSEMBLY: tl.constexpr):  # fmt: skip
    """Weights of lanes `at` int64 [LANES], as fp16 [LANES/4, 128] in the layout's order of inputs."""
    WORDS: tl.constexpr = 8 if BITS == 8 else (16 if BITS == 16 else 4)
    b_words = tl.load(p_words + at[:, None] * WORDS + tl.arange(0, WORDS)[None, :])
    b_words = tl.reshape(b_words, (LANES, 4, 1 if WORDS == 4 else 2, 2 if WORDS == 16 else 1, 1))
    b_high = b_words
    if BITS == 5 or BITS == 6:
        HIGH: tl.constexpr = BITS - 4
        b_high = tl.load(p_high + at[:, None] * HIGH + tl.arange(0, HIGH)[None, :])
        b_high = tl.broadcast_to(tl.reshape(b_high, (LANES, HIGH, 1)), (LANES, HIGH, 4 // HIGH))
        b_high = tl.broadcast_to(tl.reshape(b_high, (LANES, 4, 1, 1, 1)), (LANES, 4, 2, 2, 2))
    if ASSEMBLY:
        b_weight = _assembled_codes(b_words, b_high, p_table, BITS, LANES)
    else:
        b_weight = _portable_codes(b_words, b_high, p_table, BITS, OFFSET)
    if BITS != 16:
        b_weight = _scaled(b_weight, p_scales, p_table, at, GROUP, MINIMUM, LANES, ASSEMBLY)
    b_weight = tl.permute(tl.reshape(b_weight, (LANES // 4, 4, 4, 2, 2, 2)), (0, 2, 3, 4, 1, 5))
    return tl.reshape(b_weight, (LANES // 4, 128))


@triton.jit
def _program_of(step, P, all_steps):
    """The program that does a step."""
    return ((step + 1) * P - 1) // all_steps


@triton.jit
def _decode(
    p_x, p_words, p_high, p_scales, p_table, p_parts, N, K, P, TILES: tl.constexpr, ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, MINIMUM: tl.constexpr, OFFSET: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Program p does steps [p S' / P, (p + 1) S' / P) of all tiles' S' and leaves a part a tile that it touches."""
    steps = K // 128
    all_steps = N // OUTPUTS * steps
    program = tl.program_id(0)
    at = (program * all_steps) // P
    end = ((program + 1) * all_steps) // P
    o_lane = tl.arange(0, OUTPUTS * 4)
    o_row, o_k, o_n = tl.arange(0, ROWS), tl.arange(0, 128), tl.arange(0, OUTPUTS)
    while at < end:
        tile = at // steps
        first = at - tile * steps
        last = tl.minimum(steps, first + end - at)
        b_sums = (tl.zeros((OUTPUTS, ROWS), tl.float32),) * TILES
        lanes = ((tile * (OUTPUTS // 32) + o_lane // 128) * steps).to(tl.int64)
        for step in range(first, last):
            b_weight = _unpack(
                p_words, p_high, p_scales, p_table, (lanes + step) * 128 + o_lane % 128,
                BITS, GROUP, MINIMUM, OFFSET, OUTPUTS * 4, ASSEMBLY,
            )  # fmt: skip
            p_step = p_x + step * 128 + o_row[None, :] * K + o_k[:, None]
            b_more = ()
            for t in tl.static_range(TILES):
                b_more = b_more + (tl.dot(b_weight, tl.load(p_step + t * ROWS * K), b_sums[t]),)  # type: ignore[assignment]  # noqa: RUF005
            b_sums = b_more
        part = program - _program_of(tile * steps, P, all_steps)
        p_out = p_parts + (part * (TILES * ROWS) + o_row[None, :]).to(tl.int64) * N + tile * OUTPUTS + o_n[:, None]
        for t in tl.static_range(TILES):
            tl.store(p_out + t * ROWS * N, b_sums[t])
        at += last - first


@triton.jit
def _add_parts(p_parts, p_x_factor, p_factor, p_out, N, K, P, REAL, TILE_ROWS, OUTPUTS: tl.constexpr):
    """out[r, n] = the parts' sum in their order, times two powers of two."""
    tile, row = tl.program_id(0), tl.program_id(1)
    o_n = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    steps = K // 128
    all_steps = N // OUTPUTS * steps
    first = _program_of(tile * steps, P, all_steps)
    last = _program_of(tile * steps + steps - 1, P, all_steps)
    b_sum = tl.load(p_parts + row.to(tl.int64) * N + o_n)
    for part in range(1, last - first + 1):
        b_sum += tl.load(p_parts + (part * TILE_ROWS + row).to(tl.int64) * N + o_n)
    b_sum *= tl.load(p_x_factor + row) * tl.load(p_factor + o_n)
    tl.store(p_out + row.to(tl.int64) * REAL + o_n, b_sum, mask=o_n < REAL)


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
    bits = tl.max(b_most, 0).to(tl.int32, bitcast=True)
    # The factor 2**(e - 14) of a largest value in [2**e, 2**(e+1)) and its inverse, by their exponents.
    exponent = tl.minimum(tl.maximum((bits >> 23) - 14, 1), 253)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    tl.store(p_factor + row, (exponent << 23).to(tl.float32, bitcast=True))
    for start in range(0, K, CHUNK):
        o_k = start + o_c
        place = o_k % 128
        o_from = o_k - place + place // 2 % 4 * 32 + place // 8 * 2 + place % 2
        b_x = tl.load(p_x + row * X_STRIDE + o_from, mask=(o_from < REAL) & live, other=0.0)
        tl.store(p_out + row * K + o_k, (b_x.to(tl.float32) * inverse).to(tl.float16), mask=o_k < K)


@triton.jit
def _expand(p_words, p_high, p_scales, p_table, p_out, K, TILE0, OUTPUTS: tl.constexpr, BITS: tl.constexpr,
            GROUP: tl.constexpr, MINIMUM: tl.constexpr, OFFSET: tl.constexpr, ASSEMBLY: tl.constexpr):  # fmt: skip
    """Halves [OUTPUTS of a tile, 128 of a step], the values that `_decode` multiplies with."""
    o_lane = tl.arange(0, OUTPUTS * 4)
    tile, step = tl.program_id(1), tl.program_id(0)
    steps = K // 128
    lanes = (((TILE0 + tile) * (OUTPUTS // 32) + o_lane // 128) * steps + step).to(tl.int64) * 128 + o_lane % 128
    b_weight = _unpack(p_words, p_high, p_scales, p_table, lanes, BITS, GROUP, MINIMUM, OFFSET, OUTPUTS * 4, ASSEMBLY)
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
def _table(layout: Layout, device: torch.device) -> Tensor:
    """The numbers that `_unpack` loads, int32."""

    def halves(value: float) -> int:
        return int(torch.tensor([value, value], dtype=torch.float16).view(torch.int32))

    low, high = 1024 + layout.offset, 64 + layout.offset
    places = [(p1, p0) for p1 in (0, 1) for p0 in (0, 1)]
    width = max(layout.bits - 4, 0)
    if layout.bits == 8:
        mask, factor, offset = [0x00FF00FF] * 2, [halves(1.0)] * 2, [halves(-low)] * 2
        plain = [8 * p0 + 16 * h for _, p0 in places for h in (0, 1)]
    else:
        mask, factor, offset = [0x000F000F, 0x00F000F0], [halves(1.0), halves(1 / 16)], [halves(-low), halves(-high)]
        plain = [8 * p1 + 4 * p0 + 16 * h for p1, p0 in places for h in (0, 1)]
    field = (1 << width) - 1
    high_mask = [field << 4 | field << 20, field << 8 | field << 24]
    pairs = 16 // max(width, 1)
    at = [width * ((4 * r + 2 * p1 + p0) % pairs) for r in range(4) for p1, p0 in places]
    rotate = [(place - (8 if index % 2 else 4)) % 32 for index, place in enumerate(at)]
    plain_high = [place + 16 * h for place in at for h in (0, 1)]
    numbers = [0, 8, *mask, *factor, *offset, *high_mask, *rotate, 0x1010, 0x3232, *plain, *plain_high]
    return torch.tensor(numbers, dtype=torch.int64).to(torch.int32).to(device)


@cache
def _processors(device: torch.device) -> int:
    """Multiprocessors; a handful where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def tiling_of(device: torch.device) -> Tiling:
    """The device's tiling."""
    return AMD if device.type == "cuda" and torch.version.hip else NVIDIA


def programs_of(outputs: int, inputs: int, device: torch.device) -> int:
    """Programs that a matrix [outputs, inputs] is split over, by its padded shape and the device alone.

    Three a multiprocessor (measured: two and four are slower), but at least four steps each.
    """
    steps = outputs // tiling_of(device).outputs * (inputs // STEP)
    return max(1, min(3 * _processors(device), steps // 4))


def parts_of(tiles: int, steps: int, programs: int) -> int:
    """The most parts that a tile of outputs can have; steps: of a tile."""
    total = tiles * steps
    return max(
        ((tile + 1) * steps * programs - 1) // total - ((tile * steps + 1) * programs - 1) // total + 1
        for tile in range(tiles)
    )


def padded_rows(rows: int, tiling: Tiling) -> tuple[int, int]:
    """Row tiles of a pass of 1 to 64 rows, and the rows that they hold."""
    tiles = next(tiles for tiles in TILES if tiles * tiling.rows >= rows)
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


def _layout_arguments(matrix: PackedMatrix) -> tuple[Any, ...]:
    """Pointers of a matrix, and the table."""
    words, scales = matrix.words, matrix.scales
    if scales is not None and matrix.layout.scale_bytes > 2:
        scales = scales.view(torch.int32)
    return (
        words,
        words if matrix.high is None else matrix.high,
        words if scales is None else scales,
        _table(matrix.layout, words.device),
    )


def _layout_options(matrix: PackedMatrix, outputs: int) -> dict[str, Any]:
    layout = matrix.layout
    return {
        "OUTPUTS": outputs, "BITS": layout.bits, "GROUP": layout.group, "MINIMUM": layout.minimum,
        "OFFSET": layout.offset, "ASSEMBLY": has_assembly(matrix.words.device),
    }  # fmt: skip


def product(staged: Tensor, x_factor: Tensor, matrix: PackedMatrix, count: int) -> Tensor:
    """What `stage` made of `count` rows of a decode pass -> float32 [count, N]."""
    (outputs, inputs), tiling = matrix.padded, tiling_of(staged.device)
    tiles, rows = padded_rows(count, tiling)
    programs = programs_of(outputs, inputs, staged.device)
    most = parts_of(outputs // tiling.outputs, inputs // STEP, programs)
    parts = torch.empty(most, rows, outputs, dtype=torch.float32, device=staged.device)
    _decode[(programs,)](
        staged, *_layout_arguments(matrix), parts, outputs, inputs, programs, TILES=tiles, ROWS=tiling.rows,
        **_layout_options(matrix, tiling.outputs), **tiling.options(matrix.layout),
    )  # fmt: skip
    out = torch.empty(count, matrix.out_features, dtype=torch.float32, device=staged.device)
    _add_parts[(outputs // tiling.outputs, count)](
        parts, x_factor, matrix.factor, out, outputs, inputs, programs, matrix.out_features, rows,
        OUTPUTS=tiling.outputs, num_warps=2,
    )  # fmt: skip
    return out


def decode(x: Tensor, matrix: PackedMatrix) -> Tensor:
    """x [R, K], 1 <= R <= 64, any float type -> float32 [R, N]; a row's bits depend on that row alone."""
    _, rows = padded_rows(len(x), tiling_of(x.device))
    return product(*stage(x, matrix.padded[1], rows), matrix, len(x))


def prefill(x: Tensor, matrix: PackedMatrix) -> Tensor:
    """x [T, K], any float type -> float32 [T, N]; a row's bits do not depend on T.

    The matrix is expanded to halves, some tiles of outputs at a time, and multiplied in one fixed shape of tile.
    """
    outputs, inputs = matrix.padded
    staged, x_factor = stage(x, inputs, len(x))
    out = torch.empty(len(x), matrix.out_features, dtype=torch.float32, device=x.device)
    chunk = max(1, EXPANDED // (OUTPUTS * inputs))
    halves = torch.empty(min(chunk, outputs // OUTPUTS) * OUTPUTS, inputs, dtype=torch.float16, device=x.device)
    # The inner functions in PTX need the two codes of a pair side by side in a lane, which only the operand of a
    # matrix instruction makes certain.
    arguments, options = _layout_arguments(matrix), _layout_options(matrix, OUTPUTS) | {"ASSEMBLY": False}
    for tile in range(0, outputs // OUTPUTS, chunk):
        count = min(chunk, outputs // OUTPUTS - tile)
        first = tile * OUTPUTS
        real = min(count * OUTPUTS, matrix.out_features - first)
        _expand[(inputs // STEP, count)](*arguments, halves, inputs, tile, **options, num_warps=8)
        grid = triton.cdiv(len(x), _PREFILL["ROWS"]) * triton.cdiv(real, _PREFILL["OUTPUTS"])
        _prefill[(grid,)](
            staged, halves, x_factor, matrix.factor[first:], out[:, first:], len(x), inputs, real, matrix.out_features,
            **_PREFILL, num_warps=8, num_stages=3,
        )  # fmt: skip
    return out
