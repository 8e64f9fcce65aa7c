"""From products to the next operand, a program per row that holds all of it (README.md beside this file).

A row lies in blocks [groups, 16]: columns of a group share a tile of outputs, so its parts are counted once a group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from draftwood.kernels._math import power, silu
from draftwood.kernels._rows import aligned, is_aligned, require, row_stride
from draftwood.kernels.layouts import STEP
from draftwood.kernels.linear.triton import (
    Columns,
    Parts,
    Staged,
    _count_parts,
    _summed,
    padded_rows,
    starts_early,
    tiling_of,
)
from draftwood.kernels.norm.triton import shape_of

_GROUP = 16
"""Columns of a group. Matrices' inputs are multiples of 32, so what a product has for one begins on a group."""

_CHUNK = 2048
"""Columns that a gate computes at once."""

_MOST_NORM, _MOST_GATE = 8192, 20480
"""Columns of a row that registers hold."""

_HEADS = (16, 32, 64, 128, 256, 512, 1024)
"""Widths of a norm's heads."""

Source = tuple[int, int, int, int, int, int, int]
"""Where columns lie: MOST FIRST N K P of a product (`_summed`), or 0 0 ROW_STRIDE 0 0 of a tensor; RUN consecutive
columns at a time, STRIDE apart."""


@triton.jit
def _read(pointers, row, o_at, m_n, SOURCE: tl.constexpr, OUTPUTS: tl.constexpr):
    """Columns of a row whose groups begin at o_at, float32 [groups, 16]."""
    MOST: tl.constexpr = SOURCE[0]
    N: tl.constexpr = SOURCE[2]
    RUN: tl.constexpr = SOURCE[5]
    o_from = o_at
    if SOURCE[6] != RUN:
        o_from = tl.multiple_of(o_at // RUN * SOURCE[6] + o_at % RUN, 16)
    o_from += SOURCE[1]
    o_n = o_from[:, None] + tl.arange(0, 16)[None, :]
    if MOST == 0:
        b_x = tl.load(pointers[0] + row.to(tl.int64) * N + o_n, mask=m_n, other=0.0).to(tl.float32)
    else:
        b_count = _count_parts(o_from // OUTPUTS, N, SOURCE[3], SOURCE[4], OUTPUTS)
        # A program per row of the parts, padding included.
        b_x = _summed(pointers, row, tl.num_programs(0), o_n, m_n, b_count[:, None], N, MOST)
    return b_x


@triton.jit
def _store_halves(p_out, row, first, b_x, inverse, K: tl.constexpr, COLUMNS: tl.constexpr, LINE: tl.constexpr):
    """Columns [first, first + COLUMNS) of a row as halves in the layout's order.

    LINE: what they are stored in lines of. No block that is loaded may have that shape: Triton gives a lane as many
    columns in all blocks of one shape, and would give it the eight that are 16 bytes of halves.
    """
    b_half = tl.reshape((b_x * inverse).to(tl.float16), (COLUMNS // 128, 4, 16, 2))
    b_half = tl.reshape(tl.permute(b_half, (0, 2, 1, 3)), (COLUMNS // LINE, LINE))
    o_k = first + tl.arange(0, COLUMNS // LINE)[:, None] * LINE + tl.arange(0, LINE)[None, :]
    tl.store(p_out + row.to(tl.int64) * K + o_k, b_half, mask=o_k < K)


@triton.jit(do_not_specialize=["count"])
def _add_norm(
    p_x, y, p_weight, p_out, p_factor, count, eps, WIDTH: tl.constexpr, K: tl.constexpr, SOURCE: tl.constexpr,
    BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    o_n = tl.arange(0, BLOCK)
    b_weight = tl.load(p_weight + o_n, mask=o_n < WIDTH, other=0.0)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    m_n = (o_n < WIDTH) & (row < count)
    p_row = p_x + row.to(tl.int64) * WIDTH + o_n
    b_x = tl.load(p_row, mask=m_n, other=0.0)
    if SOURCE is not None:
        o_at = tl.arange(0, BLOCK // 16) * 16
        m_y = (o_at[:, None] + tl.arange(0, 16)[None, :] < WIDTH) & (row < count)
        b_x += tl.reshape(_read(y, row, o_at, m_y, SOURCE, OUTPUTS), (BLOCK,))
        tl.store(p_row, b_x, mask=m_n)
    scale = tl.rsqrt(tl.sum(b_x * b_x, 0) / WIDTH + eps)
    b_x = b_x * scale * b_weight
    factor, inverse = power(tl.max(tl.abs(b_x), 0))
    tl.store(p_factor + row, factor)
    _store_halves(p_out, row, 0, b_x, inverse, K, BLOCK, 128)


@triton.jit(do_not_specialize=["count"])
def _gated_norm(
    p_mixed, z, p_norm, p_out, p_factor, count, eps, WIDTH: tl.constexpr, V: tl.constexpr, K: tl.constexpr,
    SOURCE: tl.constexpr, BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    o_at, o_v = tl.arange(0, BLOCK // 16) * 16, tl.arange(0, V)
    b_norm = tl.load(p_norm + o_v)[None, :]
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    o_n = tl.arange(0, BLOCK // V)[:, None] * V + o_v[None, :]
    b_x = tl.load(p_mixed + row.to(tl.int64) * WIDTH + o_n, mask=(o_n < WIDTH) & (row < count), other=0.0)
    m_z = (o_at[:, None] + tl.arange(0, 16)[None, :] < WIDTH) & (row < count)
    b_z = tl.reshape(_read(z, row, o_at, m_z, SOURCE, OUTPUTS), (BLOCK // V, V))
    b_sum = b_x * b_x
    # The order of `kernels/delta_rule`: first half plus second half until one is left.
    for level in tl.static_range(10):
        if (V >> level) > 1:
            b_sum = tl.sum(tl.reshape(b_sum, (BLOCK // V, 2, V >> (level + 1))), 1)
    scale = tl.rsqrt(b_sum / V + eps)
    b_x = b_x * scale * b_norm * silu(b_z)
    factor, inverse = power(tl.max(tl.reshape(tl.abs(b_x), (BLOCK,)), 0))
    tl.store(p_factor + row, factor)
    _store_halves(p_out, row, 0, b_x, inverse, K, BLOCK, V // 2)


@triton.jit(do_not_specialize=["count"])
def _gate(
    value, gate, p_out, p_factor, count, WIDTH: tl.constexpr, K: tl.constexpr, VALUE: tl.constexpr, GATE: tl.constexpr,
    SILU: tl.constexpr, CHUNK: tl.constexpr, OUTPUTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The value times silu or sigmoid of the gate, if there is one; chunks stay in registers until all are known."""
    row = tl.program_id(0)
    o_at = tl.arange(0, CHUNK // 16) * 16
    b_most = tl.zeros((CHUNK // 16, 16), tl.float32)
    b_kept = ()
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    for first in tl.static_range(0, K, CHUNK):
        m_n = (first + o_at[:, None] + tl.arange(0, 16)[None, :] < WIDTH) & (row < count)
        b_x = _read(value, row, first + o_at, m_n, VALUE, OUTPUTS)
        if GATE is not None:
            b_gate = _read(gate, row, first + o_at, m_n, GATE, OUTPUTS)
            b_x = (b_gate if SILU else 1.0) / (1.0 + tl.exp(-b_gate)) * b_x
        b_most = tl.maximum(b_most, tl.abs(b_x))
        b_kept = b_kept + (b_x,)  # type: ignore[assignment]  # noqa: RUF005
    factor, inverse = power(tl.max(tl.reshape(b_most, (CHUNK,)), 0))
    tl.store(p_factor + row, factor)
    for chunk in tl.static_range(len(b_kept)):
        _store_halves(p_out, row, chunk * CHUNK, b_kept[chunk], inverse, K, CHUNK, 128)


def gate_shape(width: int) -> tuple[int, int]:
    """Columns of a gate's chunk, and warps, for rows of `width`: 4 columns a lane and chunk."""
    chunk = min(max(triton.next_power_of_2(width), STEP), _CHUNK)
    return chunk, chunk // 128


def norm_block(width: int) -> int:
    """Columns of a norm's program."""
    block: int = max(triton.next_power_of_2(width), STEP)
    return block


def norm_warps(width: int) -> int:
    """Those of `kernels/norm`, whose order of additions this is."""
    return shape_of(width)[1]


def gated_norm_warps(width: int) -> int:
    """8 columns a lane; no order of additions depends on them."""
    return min(max(norm_block(width) // 256, 1), 32)


def _source(
    x: Tensor | Parts | Columns, count: int, width: int, exponents: bool = False
) -> tuple[tuple[Tensor, Tensor, Tensor], Source]:
    """Pointers and place of `width` columns of `count` rows; exponents: whether a product's factors are read as bytes.

    They are where a lane has four columns of a block; where it has more, Triton loads 16 bytes a lane, and brings them
    to the lanes that have the columns by way of shared memory.
    """
    if isinstance(x, Parts):
        x = x.columns(0, x.joined.out_features)
    if isinstance(x, Columns):
        parts, runs = x.parts, (x.width, x.stride if x.runs > 1 else x.width)
        have = parts.count, x.width * x.runs
        fits = x.first % _GROUP == 0 and (x.runs == 1 or all(each % _GROUP == 0 for each in runs))
        require(fits, f"{x.runs} x {x.width} columns from {x.first} on do not begin on multiples of {_GROUP}")
        n, k = parts.joined.padded
        pointers = parts.parts, parts.x_factor, parts.joined.exponents if exponents else parts.joined.factor
        place = (len(parts.parts), x.first, n, k, parts.programs, *runs)
    else:
        have, run, stride = (len(x), x[0].numel()), width, width
        strides = row_stride(x), *x.stride()[1:-1]
        if is_aligned(x) and not any(each % _GROUP for each in (*strides, *x.shape[-1:])):
            run, stride = (x.shape[-1], x.stride(1)) if x.dim() == 3 else (width, width)
        else:
            # Where rows lie must not change how they are loaded, so what is not like a matrix's output is copied.
            x = aligned(x.reshape(len(x), -1).contiguous())
        pointers, place = (x, x, x), (0, 0, row_stride(x), 0, 0, run, stride)
    require(have == (count, width), f"a product of {have[0]} rows x {have[1]} for {count} x {width}")
    return pointers, place


def _fresh(count: int, width: int, device: torch.device) -> Staged:
    """Room for the operand."""
    require(1 <= count <= 64, f"a decode pass has 1 to 64 rows, not {count}")
    _, rows = padded_rows(count, tiling_of(device))
    halves = torch.empty(rows, width + -width % STEP, dtype=torch.float16, device=device)
    return Staged(halves, torch.empty(rows, dtype=torch.float32, device=device), count)


def add_norm(x: Tensor, y: Tensor | Parts | Columns | None, weight: Tensor, eps: float) -> Staged:
    """See `draftwood.kernels.operand.AddNorm`."""
    count, width = x.shape
    require(is_aligned(x) and x.is_contiguous(), "x is written in place: contiguous, from a multiple of 16 bytes on")
    require(
        weight.shape == (width,) and is_aligned(weight), f"a norm of {width} needs as many weights, 16-byte aligned"
    )
    require(width <= _MOST_NORM, f"a norm holds {_MOST_NORM} columns, not {width}")
    out, early = _fresh(count, width, x.device), starts_early(x.device)
    pointers, place = (None, None) if y is None else _source(y, count, width)
    _add_norm[(len(out.factor),)](
        x, pointers, weight, out.halves, out.factor, count, eps, WIDTH=width, K=out.halves.shape[1], SOURCE=place,
        BLOCK=norm_block(width), OUTPUTS=tiling_of(x.device).outputs, EARLY=early, num_warps=norm_warps(width),
        launch_pdl=early,
    )  # fmt: skip
    return out


def gated_norm(mixed: Tensor, z: Tensor | Parts | Columns, norm: Tensor, eps: float) -> Staged:
    """See `draftwood.kernels.operand.GatedNorm`."""
    count, heads, size = mixed.shape
    width = heads * size
    require(norm.shape == (size,) and is_aligned(norm), f"heads of {size} need as many weights, 16-byte aligned")
    require(size in _HEADS, f"heads of {size} are none of {', '.join(map(str, _HEADS))}")
    require(width <= _MOST_NORM, f"a norm holds {_MOST_NORM} columns, not {width}")
    out, early = _fresh(count, width, mixed.device), starts_early(mixed.device)
    pointers, place = _source(z, count, width)
    _gated_norm[(len(out.factor),)](
        aligned(mixed.contiguous()), pointers, norm, out.halves, out.factor, count, eps, WIDTH=width, V=size,
        K=out.halves.shape[1], SOURCE=place, BLOCK=norm_block(width), OUTPUTS=tiling_of(mixed.device).outputs,
        EARLY=early, num_warps=gated_norm_warps(width), launch_pdl=early, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def _gated(
    value: Tensor | Columns, gate: Tensor | Parts | Columns | None, count: int, width: int, silu: bool
) -> Staged:
    """The value times silu or sigmoid of the gate."""
    device = value.device if isinstance(value, Tensor) else value.parts.parts.device
    require(width <= _MOST_GATE, f"a gate holds {_MOST_GATE} columns, not {width}")
    out, early = _fresh(count, width, device), starts_early(device)
    (pointers, place), (chunk, warps) = _source(value, count, width, True), gate_shape(width)
    gates, gate_place = (None, None) if gate is None else _source(gate, count, width, True)
    _gate[(len(out.factor),)](
        pointers, gates, out.halves, out.factor, count, WIDTH=width, K=out.halves.shape[1], VALUE=place,
        GATE=gate_place, SILU=silu, CHUNK=chunk, OUTPUTS=tiling_of(device).outputs, EARLY=early, num_warps=warps,
        launch_pdl=early,
    )  # fmt: skip
    return out


def silu_gate(gate_up: Tensor | Parts) -> Staged:
    """See `draftwood.kernels.operand.SiluGate`."""
    if isinstance(gate_up, Tensor):
        count, width = len(gate_up), gate_up.shape[1] // 2
        return _gated(gate_up[:, width:], gate_up[:, :width], count, width, silu=True)
    count, width = gate_up.count, gate_up.joined.out_features // 2
    return _gated(gate_up.columns(width, 2 * width), gate_up.columns(0, width), count, width, silu=True)


def gate(mixed: Tensor, gate: Tensor | Parts | Columns | None) -> Staged:
    """See `draftwood.kernels.operand.Gate`."""
    return _gated(mixed, gate, len(mixed), mixed[0].numel(), silu=False)
