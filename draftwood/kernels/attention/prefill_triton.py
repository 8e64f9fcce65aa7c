# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Causal attention of a prefill pass on a GPU (README.md beside this file has the maths and the figures).

Letters: T tokens of the pass, H query heads, G KV heads, D head width. A program has a granule of query rows of PART
heads that share keys, PART * 64 rows of its matrix operands, and visits the keys in ascending order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.batch import GRANULE
from draftwood.kernels._rows import require
from draftwood.kernels.codec import KeptRows
from draftwood.kernels.scratch import SEGMENT_BYTES, granule_shapes, segment_rows

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Tile:
    """Of a program.

    heads: query heads at most. keys: of a step. width: columns of queries and keys that a score takes at a time; all of
    them where queries stay in shared memory. warps: for each head. stages: of the loop over keys.
    """

    heads: int
    keys: int
    width: int
    warps: int
    stages: int


LARGE = {64: Tile(2, 128, 64, 4, 3), 128: Tile(2, 64, 128, 4, 3), 256: Tile(2, 32, 256, 4, 3)}
"""By D, where a program may have 200 KiB of shared memory, as on a Hopper with its matrix instructions for 64 rows."""

SMALL = {64: Tile(2, 64, 64, 4, 2), 128: Tile(2, 64, 64, 4, 2), 256: Tile(2, 32, 64, 4, 2)}
"""NVIDIA with about 100 KiB."""

AMD = {64: Tile(2, 32, 32, 4, 1), 128: Tile(2, 32, 64, 4, 1), 256: Tile(1, 32, 64, 8, 1)}
"""RDNA 3 has 64 KiB and 256 registers a lane, of which the operands of WMMA take twice what they hold."""

_EXPANDED_ROWS = 32


@triton.jit
def _expand(p_0, p_1, p_2, p_3, p_out, first, rows, segment, LOAD: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    """Rows first .. of every head as halves, [G, segment, D]."""
    head = tl.program_id(1).to(tl.int64)
    o_rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b_rows = LOAD((p_0, p_1, p_2, p_3), head * rows, first + o_rows, tl.full([ROWS], True, tl.int1), 0, D, D)
    tl.store(p_out + head * segment * D + (o_rows[:, None] * D + tl.arange(0, D)[None, :]), b_rows)


@triton.jit
def _scores(p_q, p_k, b_q, m_rows, ROWS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Queries by keys; where WIDTH is not D, so many columns of both are loaded at a time."""
    o_keys = tl.arange(0, KEYS)
    if WIDTH == D:
        p_k += o_keys[:, None] * D + tl.arange(0, D)[None, :]
        b_k = tl.load(p_k) if m_rows is None else tl.load(p_k, mask=m_rows, other=0.0)
        b_scores = tl.dot(b_q, tl.trans(b_k))
    else:
        o_rows, o_d = tl.arange(0, ROWS), tl.arange(0, WIDTH)
        b_scores = tl.zeros([ROWS, KEYS], tl.float32)
        for column in tl.range(0, D, WIDTH, num_stages=1):
            b_part = tl.load(p_q + column + o_rows[:, None] * D + o_d[None, :])
            place = column + o_keys[:, None] * D + o_d[None, :]
            b_k = tl.load(p_k + place) if m_rows is None else tl.load(p_k + place, mask=m_rows, other=0.0)
            b_scores = tl.dot(b_part, tl.trans(b_k), b_scores)
    return b_scores


@triton.jit
def _weigh(b_scores, b_peak, b_total, scale):
    """Largest scores and sums by now, the keys' weights as halves, and what earlier ones are to be multiplied by."""
    b_top = tl.maximum(b_peak, tl.max(b_scores, 1))
    b_weights = tl.exp2(b_scores * scale - (b_top * scale)[:, None])
    b_keep = tl.exp2((b_peak - b_top) * scale)
    return b_top, b_total * b_keep + tl.sum(b_weights, 1), b_weights.to(tl.float16), b_keep


@triton.jit
def _step(p_q, p_k, p_v, b_q, b_peak, b_total, b_mixed, at, first, o_position, scale, GRANULE: tl.constexpr,
          KEYS: tl.constexpr, DIAGONAL: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Take in KEYS keys from position `at` on. DIAGONAL: some of them are after some of the rows."""
    o_keys = tl.arange(0, KEYS)
    offset = (at - first).to(tl.int64) * D
    m_rows = None
    if DIAGONAL and KEYS > GRANULE:
        m_rows = (at + o_keys <= tl.max(o_position, 0))[:, None]
    b_scores = _scores(p_q, p_k + offset, b_q, m_rows, o_position.shape[0], KEYS, D, WIDTH)
    p_v += offset + o_keys[:, None] * D + tl.arange(0, D)[None, :]
    b_v = tl.load(p_v) if m_rows is None else tl.load(p_v, mask=m_rows, other=0.0)
    if DIAGONAL:
        b_scores = tl.where(at + o_keys[None, :] <= o_position[:, None], b_scores, -float("inf"))
    b_peak, b_total, b_weights, b_keep = _weigh(b_scores, b_peak, b_total, scale)
    b_mixed = tl.dot(b_weights, b_v, b_mixed * b_keep[:, None])
    return b_peak, b_total, b_mixed


@triton.jit(do_not_specialize=["granules"])
def _attend(
    p_q, p_k, p_v, p_out, p_mixed, p_peak, p_total, start, granules, first, stop, k_stride, v_stride, scale,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, PART: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
    GRANULE: tl.constexpr, CARRIED: tl.constexpr,
):  # fmt: skip
    """Keys at positions first .. stop-1 of a granule; p_mixed, p_peak and p_total keep what is not finished by then.

    p_q, p_mixed: [H / PART, T / 64, PART, 64, D], as a program has it; p_peak, p_total the same without D. p_out:
    [T, H, D]. p_k, p_v: position `first` of the first head. start: of the pass. scale: of a score to the exponent of 2.
    k_stride, v_stride: values from head to head.
    """
    ROWS: tl.constexpr = PART * GRANULE
    # Programs that run together share a head's keys, and those with the most keys begin.
    granule = granules - 1 - tl.program_id(0) % granules
    part = tl.program_id(0) // granules
    begin = start + granule * GRANULE
    diagonal = begin // KEYS * KEYS
    if begin >= first:
        o_m, o_d = tl.arange(0, ROWS), tl.arange(0, D)
        o_position = begin + o_m % GRANULE
        at_rows = (part * granules + granule).to(tl.int64) * ROWS
        p_q += at_rows * D
        b_q = tl.load(p_q + (o_m[:, None] * D + o_d[None, :])) if WIDTH == D else None
        if CARRIED:
            b_peak, b_total = tl.load(p_peak + at_rows + o_m), tl.load(p_total + at_rows + o_m)
            b_mixed = tl.load(p_mixed + at_rows * D + (o_m[:, None] * D + o_d[None, :]))
        else:
            b_peak = tl.full([ROWS], -float("inf"), tl.float32)
            b_total = tl.zeros([ROWS], tl.float32)
            b_mixed = tl.zeros([ROWS, D], tl.float32)
        head = (part // (H // G // PART)).to(tl.int64)
        p_k += head * k_stride
        p_v += head * v_stride
        last = tl.minimum(diagonal, stop)
        if WIDTH == D:
            # A step's values are multiplied in the next step: its weights come of work that the matrix cores need not
            # wait for. The first step has no values to multiply, and takes its own with weights of zero.
            place = tl.arange(0, KEYS)[:, None] * D + o_d[None, :]
            b_weights = tl.zeros([ROWS, KEYS], tl.float16)
            b_keep = tl.full([ROWS], 1.0, tl.float32)
            for at in range(first, last, KEYS):
                b_k = tl.load(p_k + (at - first).to(tl.int64) * D + place)
                b_scores = tl.dot(b_q, tl.trans(b_k))
                b_v = tl.load(p_v + tl.maximum(at - first - KEYS, 0).to(tl.int64) * D + place)
                b_mixed = tl.dot(b_weights, b_v, b_mixed * b_keep[:, None])
                b_peak, b_total, b_weights, b_keep = _weigh(b_scores, b_peak, b_total, scale)
            if first < last:
                b_v = tl.load(p_v + (last - first - KEYS).to(tl.int64) * D + place)
                b_mixed = tl.dot(b_weights, b_v, b_mixed * b_keep[:, None])
        else:
            for at in range(first, last, KEYS):
                b_peak, b_total, b_mixed = _step(
                    p_q, p_k, p_v, b_q, b_peak, b_total, b_mixed, at, first, o_position, scale, GRANULE, KEYS, False, D,
                    WIDTH,
                )  # fmt: skip
        if diagonal < stop:
            for at in range(diagonal, begin + GRANULE, KEYS):
                b_peak, b_total, b_mixed = _step(
                    p_q, p_k, p_v, b_q, b_peak, b_total, b_mixed, at, first, o_position, scale, GRANULE, KEYS, True, D,
                    WIDTH,
                )  # fmt: skip
            o_out = (granule * GRANULE + o_m % GRANULE) * H + part * PART + o_m // GRANULE
            b_mixed = b_mixed / b_total[:, None]
            tl.store(p_out + (o_out[:, None] * D + o_d[None, :]), b_mixed.to(p_out.dtype.element_ty))
        else:
            tl.store(p_peak + at_rows + o_m, b_peak)
            tl.store(p_total + at_rows + o_m, b_total)
            tl.store(p_mixed + at_rows * D + (o_m[:, None] * D + o_d[None, :]), b_mixed)


@cache
def tiles(device: torch.device) -> dict[int, Tile]:
    """The tiles of a device by D."""
    if torch.version.hip is not None:
        return AMD
    if device.type == "cpu":
        return LARGE
    index = torch.cuda.current_device() if device.index is None else device.index
    shared = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return LARGE if shared >= 200 << 10 else SMALL


def heads_together(sharing: int, tile: Tile) -> int:
    """Heads of a program, of `sharing` heads that share keys: a power of two, as the rows of a block are."""
    return next(count for count in (4, 2, 1) if count <= tile.heads and sharing % count == 0)


def attend_granules(
    query: Tensor,
    keys: KeptRows,
    values: KeptRows,
    start: int,
    scale: float,
    out_dtype: torch.dtype = torch.float32,
    tile: Tile | None = None,
) -> Tensor:
    """Causal attention of a prefill pass over the kept rows, its own included.

    query: float [T, H, D] in the space of the kept keys, at positions start .. start+T-1, both multiples of GRANULE; H
    a multiple of G. keys, values: G heads of at least start + T rows, position p in row p. scale: of the scores. tile:
    the device's unless given. Returns [T, H, D] in `out_dtype`, in the space of the kept values; a row's bits depend on
    its position, not on the pass. Errors: ValueError for other shapes.
    """
    tokens, heads, width = query.shape
    groups, end = keys.heads, start + tokens
    if tile is None:
        known = tiles(query.device)
        require(width in known, f"heads of {width} values have no tile, only those of {', '.join(map(str, known))}")
        tile = known[width]
    require(start % GRANULE == 0 == tokens % GRANULE, f"{tokens} rows from {start} on are not whole granules")
    require(values.heads == groups and heads % groups == 0, f"{heads} heads cannot share {groups} of {values.heads}")
    require(min(keys.rows, values.rows) >= end, f"{end} positions are asked of {keys.rows} and {values.rows} rows")
    require(max(end, keys.rows) * width < 1 << 31, f"{keys.rows} rows are too many for 32-bit offsets")
    part = heads_together(heads // groups, tile)
    granules, parts = tokens // GRANULE, heads // part

    staged = torch.empty(parts, granules, part, GRANULE, width, dtype=torch.float16, device=query.device)
    staged.copy_(query.view(granules, GRANULE, parts, part, width).permute(2, 0, 3, 1, 4))
    out = torch.empty(tokens, heads, width, dtype=out_dtype, device=query.device)
    expanded = [rows for rows in (keys, values) if rows.halves is None]
    segment = segment_rows(end, groups, width, SEGMENT_BYTES) if expanded else end
    shapes = granule_shapes(tokens, heads, groups, width, end, segment, len(expanded))
    room = torch.empty(shapes["room"], dtype=torch.float16, device=query.device)
    peak, total = torch.empty(shapes["peak and total"], dtype=torch.float32, device=query.device)
    mixed = torch.empty(shapes["mixed"], dtype=torch.float32, device=query.device)

    for first in range(0, end, segment):
        stop = min(end, first + segment)
        places = iter(room)
        key, value = (
            _expanded(rows, first, stop, next(places)) if rows.halves is None else rows.halves[:, first:]
            for rows in (keys, values)
        )
        _attend[(parts * granules,)](
            staged, key, value, out, mixed, peak, total, start, granules, first, stop, key.stride(0), value.stride(0),
            scale * LOG2_E, H=heads, G=groups, D=width, PART=part, KEYS=tile.keys, WIDTH=tile.width, GRANULE=GRANULE,
            CARRIED=first > 0, num_warps=tile.warps * part, num_stages=tile.stages,
        )  # fmt: skip
    return out


def _expanded(rows: KeptRows, first: int, stop: int, out: Tensor) -> Tensor:
    """Rows first .. stop-1 as halves in `out` [G, segment, D]."""
    groups, segment, width = out.shape
    _expand[((stop - first) // _EXPANDED_ROWS, groups)](
        *rows.pointers, out, first, rows.rows, segment, LOAD=rows.codec.load, D=width, ROWS=_EXPANDED_ROWS, num_warps=4
    )
    return out
