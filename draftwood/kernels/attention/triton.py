"""Attention of a decode pass over the kept rows of a KV cache, on a GPU (README.md has the maths and the launches).

Letters: R nodes, H query heads, G KV heads, D head dim, C committed rows. A state is that of an online softmax over
some positions: the largest score, the sum of the weights and the weighted sum of the values, both relative to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.batch import MAX_ROWS
from draftwood.kernels._math import power
from draftwood.kernels._rows import aligned, require
from draftwood.kernels.chunks import LIMIT, PER_DOUBLING, SMALLEST, state_shape
from draftwood.kernels.codec import KeptRows


@dataclass(frozen=True)
class Tiling:
    """How a device goes through the keys, whatever the rows of a pass.

    rows: query rows of a program of the first launch, the most first; keys: of a block, and warps share these. piece:
    values of a head that are multiplied at once, None for all.
    """

    rows: tuple[int, ...]
    keys: int
    warps: int
    stages: int
    piece: int | None


NVIDIA = Tiling(rows=(32, 16), keys=32, warps=4, stages=3, piece=None)
"""From 64 rows on, Hopper would take another instruction, with other bits."""

AMD = Tiling(rows=(16,), keys=32, warps=8, stages=1, piece=64)
"""WMMA's left operand takes twice the registers: queries come a piece at a time."""

TAIL_ROWS = 16
"""Query rows of a program of the second launch: the heads of one node and group."""

_FOLDED, _COLUMNS = 16, 64
"""States, and values of each, that the last launch adds at once."""


@triton.jit
def _chunk_of(position, FIRST: tl.constexpr = SMALLEST, PER: tl.constexpr = PER_DOUBLING):
    """As `chunks.chunk_of`."""
    doubling = (position.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    later = tl.maximum(doubling - (FIRST + PER), 0)
    return (later << PER) + (position >> (FIRST + later))


@triton.jit
def _start_of(chunk, FIRST: tl.constexpr = SMALLEST, PER: tl.constexpr = PER_DOUBLING):
    """As `chunks.start_of`."""
    later = tl.maximum((chunk >> PER) - 1, 0)
    return (chunk - (later << PER)) << (FIRST + later)


@triton.jit
def _query_factor(p_q, o_q, m_q, scale, ROWS: tl.constexpr, PIECE: tl.constexpr, D: tl.constexpr):
    """Per row a power of two that brings its largest value under 2**15, and its inverse."""
    b_most = tl.zeros((ROWS,), tl.float32)
    for start in tl.static_range(0, D, PIECE):
        b_x = tl.load(p_q + o_q[:, None] + (start + tl.arange(0, PIECE))[None, :], mask=m_q[:, None], other=0.0)
        b_most = tl.maximum(b_most, tl.max(tl.abs(b_x * scale), 1))
    return power(b_most)


@triton.jit
def _query(p_q, o_q, m_q, scale, b_inverse, start, WIDTH: tl.constexpr):
    """Values start .. start+WIDTH-1 of the query rows as matrix operands."""
    b_x = tl.load(p_q + o_q[:, None] + (start + tl.arange(0, WIDTH))[None, :], mask=m_q[:, None], other=0.0)
    return (b_x * scale * b_inverse[:, None]).to(tl.float16)


@triton.jit
def _continue(
    b_top, b_sum, b_mix, p_q, o_q, m_q, scale, keys, values, base, first, stop, C, staging, p_path, width,
    LOAD_K: tl.constexpr, LOAD_V: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PIECE: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """A state, continued over positions first .. stop-1, KEYS at a time.

    first: a multiple of KEYS. base: the row of position 0. p_path: the staged nodes at positions C, C+1, ...; without
    it all positions are below C. width: D, known at run time only: else the loop over pieces is unrolled, and all of
    them take registers at once.

    Two launches run this on the same block at different C, and must get the same bits. So products by powers of two
    are exact, and the one sum that a compiler might fuse or not is fused.
    """
    o_s = tl.arange(0, KEYS)
    b_factor, b_inverse = _query_factor(p_q, o_q, m_q, scale, ROWS, PIECE, D)
    if PIECE == D:
        b_q = _query(p_q, o_q, m_q, scale, b_inverse, 0, D)
    for at in range(first, stop, KEYS):
        b_row = at + o_s
        m_s = b_row < stop
        if p_path is not None:
            m_staged = b_row >= C
            b_node = tl.load(p_path + (b_row - C), mask=m_s & m_staged, other=0)
            b_row = tl.where(m_staged, staging + b_node, b_row)
        if PIECE == D:
            b_s = tl.dot(b_q, tl.trans(LOAD_K(keys, base, b_row, m_s, 0, D, D)))
        else:
            b_s = tl.zeros((ROWS, KEYS), tl.float32)
            for start in range(0, width, PIECE):
                b_piece = _query(p_q, o_q, m_q, scale, b_inverse, start, PIECE)
                b_s = tl.dot(b_piece, tl.trans(LOAD_K(keys, base, b_row, m_s, start, PIECE, D)), b_s)
        b_v = LOAD_V(values, base, b_row, m_s, 0, D, D)
        b_s = tl.where(m_s[None, :], b_s * b_factor[:, None], -float("inf"))
        b_peak = tl.maximum(b_top, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - b_peak[:, None])
        b_keep = tl.exp2(b_top - b_peak)
        b_sum = tl.fma(b_sum, b_keep, tl.sum(b_p, 1))
        b_mix = tl.dot(b_p.to(tl.float16), b_v, b_mix * b_keep[:, None])
        b_top = b_peak
    return b_top, b_sum, b_mix


@triton.jit(do_not_specialize=["all_rows"])
def _bulk(
    p_q, p_k0, p_k1, p_k2, p_k3, p_v0, p_v1, p_v2, p_v3, p_mixes, p_sums, p_committed, scale, all_rows, plane_rows,
    width, LOAD_K: tl.constexpr, LOAD_V: tl.constexpr, H: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, PIECE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """States of all query rows over the blocks of a chunk that lie below C."""
    tile, group, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = _start_of(chunk)
    stop = tl.minimum(tl.load(p_committed).to(tl.int32) // KEYS * KEYS, _start_of(chunk + 1))
    if first < stop:
        HEADS: tl.constexpr = H // G
        o_row, o_d = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
        m_q = o_row < all_rows
        o_q = (o_row // HEADS * H + group * HEADS + o_row % HEADS) * D
        b_top, b_sum, b_mix = _continue(
            tl.full((ROWS,), -float("inf"), tl.float32), tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, D), tl.float32),
            p_q, o_q, m_q, scale, (p_k0, p_k1, p_k2, p_k3), (p_v0, p_v1, p_v2, p_v3), group.to(tl.int64) * plane_rows,
            first, stop, 0, 0, None, width, LOAD_K, LOAD_V, ROWS, KEYS, PIECE, D,
        )  # fmt: skip
        state = (chunk * G + group).to(tl.int64) * all_rows
        tl.store(p_sums + state * 2 + o_row * 2, b_top, mask=m_q)
        tl.store(p_sums + state * 2 + o_row * 2 + 1, b_sum, mask=m_q)
        tl.store(p_mixes + state * D + o_row[:, None] * D + o_d[None, :], b_mix, mask=m_q[:, None])


@triton.jit(do_not_specialize=["all_rows", "path_stride"])
def _tail(
    p_q, p_k0, p_k1, p_k2, p_k3, p_v0, p_v1, p_v2, p_v3, p_mixes, p_sums, p_committed, p_depth, p_ancestors, scale,
    all_rows, plane_rows, width, staging, path_stride, LOAD_K: tl.constexpr, LOAD_V: tl.constexpr, H: tl.constexpr,
    G: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PIECE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """The states of one node's heads of a group, continued from the first block that is not wholly below C."""
    node, group = tl.program_id(0), tl.program_id(1)
    HEADS: tl.constexpr = H // G
    o_head, o_d = tl.arange(0, ROWS), tl.arange(0, D)
    m_q = o_head < HEADS
    o_q = ((node * H + group * HEADS) + o_head) * D
    o_row = node * HEADS + o_head
    committed = tl.load(p_committed).to(tl.int32)
    end = committed + tl.load(p_depth + node).to(tl.int32) + 1
    whole = committed // KEYS * KEYS
    for chunk in range(_chunk_of(whole), _chunk_of(end - 1) + 1):
        first = tl.maximum(_start_of(chunk), whole)
        state = (chunk * G + group).to(tl.int64) * all_rows
        p_sum = p_sums + state * 2 + o_row * 2
        p_mix = p_mixes + state * D + o_row[:, None] * D + o_d[None, :]
        # Of a chunk that begins further back the first launch did the part below.
        m_begun = m_q & (first > _start_of(chunk))
        b_top, b_sum, b_mix = _continue(
            tl.load(p_sum, mask=m_begun, other=-float("inf")), tl.load(p_sum + 1, mask=m_begun, other=0.0),
            tl.load(p_mix, mask=m_begun[:, None], other=0.0), p_q, o_q, m_q, scale, (p_k0, p_k1, p_k2, p_k3),
            (p_v0, p_v1, p_v2, p_v3), group.to(tl.int64) * plane_rows, first,
            tl.minimum(end, _start_of(chunk + 1)), committed, staging, p_ancestors + node * path_stride, width,
            LOAD_K, LOAD_V, ROWS, KEYS, PIECE, D,
        )  # fmt: skip
        tl.store(p_sum, b_top, mask=m_q)
        tl.store(p_sum + 1, b_sum, mask=m_q)
        tl.store(p_mix, b_mix, mask=m_q[:, None])


@triton.jit(do_not_specialize=["all_rows"])
def _fold(
    p_mixes, p_sums, p_committed, p_depth, p_out, all_rows, H: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    CHUNKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """COLUMNS values of a node's head: its chunks' states, put together in their order."""
    node, head, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    HEADS: tl.constexpr = H // G
    row = node * HEADS + head % HEADS
    o_d = piece * COLUMNS + tl.arange(0, COLUMNS)
    count = _chunk_of((tl.load(p_committed) + tl.load(p_depth + node)).to(tl.int32)) + 1
    b_top = tl.full((CHUNKS,), -float("inf"), tl.float32)
    for first in range(0, count, CHUNKS):
        o_chunk = first + tl.arange(0, CHUNKS)
        o_state = (o_chunk * G + head // HEADS).to(tl.int64) * all_rows + row
        b_top = tl.maximum(b_top, tl.load(p_sums + o_state * 2, mask=o_chunk < count, other=-float("inf")))
    top = tl.max(b_top, 0)
    total = 0.0
    b_out = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, count, CHUNKS):
        o_chunk = first + tl.arange(0, CHUNKS)
        m_chunk = o_chunk < count
        o_state = (o_chunk * G + head // HEADS).to(tl.int64) * all_rows + row
        b_weight = tl.exp2(tl.load(p_sums + o_state * 2, mask=m_chunk, other=-float("inf")) - top)
        total += tl.sum(b_weight * tl.load(p_sums + o_state * 2 + 1, mask=m_chunk, other=0.0), 0)
        b_mix = tl.load(p_mixes + o_state[:, None] * D + o_d[None, :], mask=m_chunk[:, None], other=0.0)
        b_out += tl.sum(b_weight[:, None] * b_mix, 0)
    tl.store(p_out + (node * H + head) * D + o_d, b_out / total)


def tiling_of(device: torch.device) -> Tiling:
    """The device's tiling."""
    return AMD if device.type == "cuda" and torch.version.hip else NVIDIA


def stages_of(tiling: Tiling, keys: KeptRows, values: KeptRows) -> int:
    """Blocks of keys in flight; those of float32 rows take so much shared memory that two must do."""
    wide = any(field.dtype == torch.float32 for field in keys.fields + values.fields)
    return min(tiling.stages, 2) if wide else tiling.stages


def attend_tree(
    q: Tensor,
    keys: KeptRows,
    values: KeptRows,
    committed: Tensor,
    depth: Tensor,
    ancestors: Tensor,
    staging: int,
    scale: float,
) -> Tensor:
    """See `draftwood.kernels.attention.AttendTree`."""
    (nodes, heads, width), groups, plane_rows = q.shape, keys.heads, keys.rows
    rows = nodes * heads // groups
    require(
        1 <= nodes <= MAX_ROWS
        and depth.shape == (nodes,)
        and depth.is_contiguous()
        and len(ancestors) == nodes
        and (ancestors.stride(1) == 1 or ancestors.shape[1] == 1),
        f"q {tuple(q.shape)}, depth {tuple(depth.shape)} and ancestors {tuple(ancestors.shape)} are not of one pass",
    )
    require(heads % groups == 0 and heads // groups <= TAIL_ROWS, f"{heads} heads do not share {groups} by up to 16")
    require(width >= 32 and width & (width - 1) == 0, f"heads of {width} values: a power of two from 32 on is needed")
    require(
        plane_rows == values.rows and groups == values.heads and plane_rows * width < 1 << 31 and plane_rows < LIMIT,
        f"planes of {plane_rows} and {values.rows} rows of {width}",
    )
    q, tiling = aligned(q.contiguous()), tiling_of(q.device)
    shape = state_shape(nodes, heads, groups, width, staging - MAX_ROWS)
    states = torch.empty(math.prod(shape), dtype=torch.float32, device=q.device)
    mixes, sums = states.split([math.prod(shape[:3]) * width, math.prod(shape[:3]) * 2])
    tile = next((rows_ for rows_ in reversed(tiling.rows) if rows_ >= rows), tiling.rows[0])
    piece = width if tiling.piece is None else min(tiling.piece, width)
    planes = *keys.pointers, *values.pointers
    factor = scale * math.log2(math.e)
    options = {
        "LOAD_K": keys.codec.load, "LOAD_V": values.codec.load, "H": heads, "G": groups, "KEYS": tiling.keys,
        "PIECE": piece, "D": width, "num_warps": tiling.warps, "num_stages": stages_of(tiling, keys, values),
    }  # fmt: skip
    _bulk[(triton.cdiv(rows, tile), groups, shape[0])](
        q, *planes, mixes, sums, committed, factor, rows, plane_rows, width, ROWS=tile, **options
    )
    _tail[(nodes, groups)](
        q, *planes, mixes, sums, committed, depth, ancestors, factor, rows, plane_rows, width, staging,
        ancestors.stride(0), ROWS=TAIL_ROWS, **options,
    )  # fmt: skip
    out = torch.empty_like(q)
    columns = min(_COLUMNS, width)
    _fold[(nodes, heads, width // columns)](
        mixes, sums, committed, depth, out, rows, H=heads, G=groups, D=width, CHUNKS=_FOLDED, COLUMNS=columns,
        num_warps=1,
    )  # fmt: skip
    return out
