"""Attention of a decode pass over the kept rows of a KV cache, on a GPU (README.md has the maths and the launches).

Letters: R nodes, H query heads, G KV heads, D head dim, C committed rows. A state is that of an online softmax over
some positions: the largest score, the sum of the weights and the weighted sum of the values, both relative to it.
Queries are staged as halves, each row with its power of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.batch import MAX_ROWS
from draftwood.kernels._math import power
from draftwood.kernels._rows import aligned, require
from draftwood.kernels.attention.chunks_triton import chunk_of, start_of
from draftwood.kernels.chunks import LIMIT, state_shape
from draftwood.kernels.codec import KeptRows


@dataclass(frozen=True)
class Tiling:
    """How a device goes through the keys, whatever the rows of a pass.

    rows: query rows of a program of `_bulk`, the most first; tail: of one of `_tail`, the heads of one node and group.
    keys: of a block. stages: blocks in flight. ahead: where rows are not kept as halves, bytes of them that are copied
    ahead; one block is in any case. piece: values of a head that are multiplied at once, None for all.
    """

    rows: tuple[int, ...]
    tail: int
    keys: int
    warps: int
    stages: int
    ahead: int
    piece: int | None

    def block(self, keys: KeptRows, values: KeptRows) -> dict[str, int]:
        """Keys of a block and stages for these types; rows of float32 take the shared memory of twice as many."""
        fields = keys.fields + values.fields
        if any(field.dtype == torch.float32 for field in fields):
            return {"KEYS": 32, "num_stages": min(self.stages, 2)}
        if keys.halves is not None and values.halves is not None:
            return {"KEYS": self.keys, "num_stages": self.stages}
        row = sum(field.shape[2] * field.element_size() for field in fields)
        ahead = max(1, self.ahead // (self.keys * row))
        return {"KEYS": self.keys, "num_stages": min(self.stages, 1 + ahead)}


NVIDIA = Tiling(rows=(32, 16), tail=16, keys=32, warps=4, stages=3, ahead=96 << 10, piece=None)
"""With mma.m16n8k16 and 100 KiB of shared memory: warps share the keys of a block."""

AMD = Tiling(rows=(16,), tail=16, keys=32, warps=8, stages=1, ahead=0, piece=64)
"""WMMA's left operand takes twice the registers: queries come a piece at a time."""

MOST_HEADS = 16
"""That share keys."""

_FOLDED, _COLUMNS, _FOLDERS = 64, 64, 4
"""States, and values of each, that the last launch adds at once, and its warps."""


@triton.jit
def _stage(p_q, p_out, p_factor, scale, D: tl.constexpr):
    """A query row times `scale` as halves, divided by a power of two that brings its largest under 2**15, and that."""
    row = tl.program_id(0)
    o_d = row * D + tl.arange(0, D)
    b_q = tl.load(p_q + o_d) * scale
    factor, inverse = power(tl.max(tl.abs(b_q), 0))
    tl.store(p_out + o_d, (b_q * inverse).to(tl.float16))
    tl.store(p_factor + row, factor)


@triton.jit
def _places(at, stop, C, staging, p_path, KEYS: tl.constexpr):
    """Rows of the planes that hold positions at .. at+KEYS-1, and which of these are below `stop`."""
    b_row = at + tl.arange(0, KEYS)
    m_row = tl.full((KEYS,), True, tl.int1)
    if p_path is not None:
        m_row = b_row < stop
        m_staged = b_row >= C
        b_node = tl.load(p_path + (b_row - C), mask=m_row & m_staged, other=0)
        b_row = tl.where(m_staged, staging + b_node, b_row)
    return b_row, m_row


@triton.jit
def _continue(
    b_top, b_sum, b_mix, p_q, p_factor, o_row, m_row, keys, values, base, first, stop, C, staging, p_path, width,
    LOAD_K: tl.constexpr, LOAD_V: tl.constexpr, KEYS: tl.constexpr, PIECE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """A state, continued over positions first .. stop-1, KEYS at a time.

    o_row, m_row: the query rows and which of them there are. first: a multiple of KEYS. base: the row of position 0.
    p_path: the staged nodes at positions C, C+1, ...; without it all positions are below C, and stop is a multiple of
    KEYS. width: D, known at run time only: else the loop over pieces is unrolled, and all of them take registers at
    once.

    Two launches run this on the same block at different C, and must get the same bits. So products by powers of two
    are exact, and the sums that a compiler might fuse or not are fused.
    """
    b_factor = tl.load(p_factor + o_row, mask=m_row, other=1.0)
    p_row = p_q + o_row[:, None] * D + tl.arange(0, PIECE)[None, :]
    if PIECE == D:
        b_q = tl.load(p_row, mask=m_row[:, None], other=0.0)
    for at in range(first, stop, KEYS):
        b_at, m_at = _places(at, stop, C, staging, p_path, KEYS)
        if PIECE == D:
            b_s = tl.dot(b_q, tl.trans(LOAD_K(keys, base, b_at, m_at, 0, D, D)))
        else:
            b_s = tl.zeros((o_row.shape[0], KEYS), tl.float32)
            for start in range(0, width, PIECE):
                b_piece = tl.load(p_row + start, mask=m_row[:, None], other=0.0)
                b_s = tl.dot(b_piece, tl.trans(LOAD_K(keys, base, b_at, m_at, start, PIECE, D)), b_s)
        if p_path is not None:
            b_s = tl.where(m_at[None, :], b_s, -float("inf"))
        b_peak = tl.maximum(b_top, tl.max(b_s, 1) * b_factor)
        b_p = tl.exp2(tl.fma(b_s, b_factor[:, None], -b_peak[:, None]))
        b_keep = tl.exp2(b_top - b_peak)
        b_sum = tl.fma(b_sum, b_keep, tl.sum(b_p, 1))
        b_v = LOAD_V(values, base, b_at, m_at, 0, D, D)
        b_mix = tl.dot(b_p.to(tl.float16), b_v, b_mix * b_keep[:, None])
        b_top = b_peak
    return b_top, b_sum, b_mix


@triton.jit(do_not_specialize=["all_rows"])
def _bulk(
    p_q, p_k0, p_k1, p_k2, p_k3, p_v0, p_v1, p_v2, p_v3, p_mixes, p_sums, p_committed, p_factor, all_rows, plane_rows,
    width, LOAD_K: tl.constexpr, LOAD_V: tl.constexpr, H: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, PIECE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """States of all query rows over the blocks of a chunk that lie below C."""
    tile, group = tl.program_id(0), tl.program_id(1)
    # The largest chunks begin.
    chunk = tl.num_programs(2) - 1 - tl.program_id(2)
    first = start_of(chunk)
    stop = tl.minimum(tl.load(p_committed).to(tl.int32) // KEYS * KEYS, start_of(chunk + 1))
    if first < stop:
        HEADS: tl.constexpr = H // G
        o_row, o_d = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
        m_q = o_row < all_rows
        o_q = o_row // HEADS * H + group * HEADS + o_row % HEADS
        b_top, b_sum, b_mix = _continue(
            tl.full((ROWS,), -float("inf"), tl.float32), tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, D), tl.float32),
            p_q, p_factor, o_q, m_q, (p_k0, p_k1, p_k2, p_k3), (p_v0, p_v1, p_v2, p_v3),
            group.to(tl.int64) * plane_rows, first, stop, 0, 0, None, width, LOAD_K, LOAD_V, KEYS, PIECE, D,
        )  # fmt: skip
        state = (chunk * G + group).to(tl.int64) * all_rows
        tl.store(p_sums + state * 2 + o_row * 2, b_top, mask=m_q)
        tl.store(p_sums + state * 2 + o_row * 2 + 1, b_sum, mask=m_q)
        tl.store(p_mixes + state * D + o_row[:, None] * D + o_d[None, :], b_mix, mask=m_q[:, None])


@triton.jit(do_not_specialize=["all_rows", "path_stride"])
def _tail(
    p_q, p_k0, p_k1, p_k2, p_k3, p_v0, p_v1, p_v2, p_v3, p_mixes, p_sums, p_committed, p_depth, p_ancestors, p_factor,
    all_rows, plane_rows, width, staging, path_stride, LOAD_K: tl.constexpr, LOAD_V: tl.constexpr, H: tl.constexpr,
    G: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PIECE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """The states of one node's heads of a group, continued from the first block that is not wholly below C."""
    node, group = tl.program_id(0), tl.program_id(1)
    HEADS: tl.constexpr = H // G
    o_head, o_d = tl.arange(0, ROWS), tl.arange(0, D)
    m_q = o_head < HEADS
    o_q = node * H + group * HEADS + o_head
    o_row = node * HEADS + o_head
    committed = tl.load(p_committed).to(tl.int32)
    end = committed + tl.load(p_depth + node).to(tl.int32) + 1
    whole = committed // KEYS * KEYS
    for chunk in range(chunk_of(whole), chunk_of(end - 1) + 1):
        first = tl.maximum(start_of(chunk), whole)
        state = (chunk * G + group).to(tl.int64) * all_rows
        p_sum = p_sums + state * 2 + o_row * 2
        p_mix = p_mixes + state * D + o_row[:, None] * D + o_d[None, :]
        # Of a chunk that begins further back the first launch did the part below.
        m_begun = m_q & (first > start_of(chunk))
        b_top, b_sum, b_mix = _continue(
            tl.load(p_sum, mask=m_begun, other=-float("inf")), tl.load(p_sum + 1, mask=m_begun, other=0.0),
            tl.load(p_mix, mask=m_begun[:, None], other=0.0), p_q, p_factor, o_q, m_q, (p_k0, p_k1, p_k2, p_k3),
            (p_v0, p_v1, p_v2, p_v3), group.to(tl.int64) * plane_rows, first,
            tl.minimum(end, start_of(chunk + 1)), committed, staging, p_ancestors + node * path_stride, width,
            LOAD_K, LOAD_V, KEYS, PIECE, D,
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
    count = chunk_of((tl.load(p_committed) + tl.load(p_depth + node)).to(tl.int32)) + 1
    top, total = -float("inf"), 0.0
    b_out = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, count, CHUNKS):
        o_chunk = first + tl.arange(0, CHUNKS)
        m_chunk = o_chunk < count
        o_state = (o_chunk * G + head // HEADS).to(tl.int64) * all_rows + row
        b_top = tl.load(p_sums + o_state * 2, mask=m_chunk, other=-float("inf"))
        b_sum = tl.load(p_sums + o_state * 2 + 1, mask=m_chunk, other=0.0)
        b_mix = tl.load(p_mixes + o_state[:, None] * D + o_d[None, :], mask=m_chunk[:, None], other=0.0)
        peak = tl.maximum(top, tl.max(b_top, 0))
        b_weight, keep = tl.exp2(b_top - peak), tl.exp2(top - peak)
        total = total * keep + tl.sum(b_weight * b_sum, 0)
        b_out = b_out * keep + tl.sum(b_weight[:, None] * b_mix, 0)
        top = peak
    tl.store(p_out + (node * H + head) * D + o_d, b_out / total)


@cache
def tiling_of(device: torch.device) -> Tiling:
    """The device's tiling, where it fills states by the kernels here."""
    return AMD if device.type == "cuda" and torch.version.hip else NVIDIA


@cache
def filler_of(device: torch.device, width: int) -> Callable[..., None]:
    """`fill_states` here, or Hopper's own, which is written in Gluon as Triton has it from 3.6 on."""
    gluon = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 6)
    cuda = device.type == "cuda" and not torch.version.hip
    if gluon and cuda and torch.cuda.get_device_capability(device)[0] == 9:
        from draftwood.kernels.attention import hopper

        if hopper.MIN_WIDTH <= width <= hopper.MAX_WIDTH:
            return hopper.fill_states
    return fill_states


def fill_states(
    q: Tensor,
    keys: KeptRows,
    values: KeptRows,
    committed: Tensor,
    depth: Tensor,
    ancestors: Tensor,
    staging: int,
    scale: float,
    mixes: Tensor,
    sums: Tensor,
) -> None:
    """The states of all chunks that a node sees, float32: mixes [chunks, G, R H/G, D] and sums [chunks, G, R H/G, 2].

    The rest as of `draftwood.kernels.attention.AttendTree`, but for scale, which is for exponents of two; chunks: those
    of the capacity.
    """
    (nodes, heads, width), groups, tiling = q.shape, keys.heads, tiling_of(q.device)
    rows = nodes * heads // groups
    tile = next((rows_ for rows_ in reversed(tiling.rows) if rows_ >= rows), tiling.rows[0])
    piece = width if tiling.piece is None else min(tiling.piece, width)
    planes = *keys.pointers, *values.pointers
    options = {
        "LOAD_K": keys.codec.load, "LOAD_V": values.codec.load, "H": heads, "G": groups, "PIECE": piece, "D": width,
        "num_warps": tiling.warps, **tiling.block(keys, values),
    }  # fmt: skip
    staged = torch.empty(q.shape, dtype=torch.float16, device=q.device)
    factor = torch.empty(nodes * heads, dtype=torch.float32, device=q.device)
    _stage[(nodes * heads,)](q, staged, factor, scale, D=width, num_warps=1)
    _bulk[(triton.cdiv(rows, tile), groups, len(mixes))](
        staged, *planes, mixes, sums, committed, factor, rows, keys.rows, width, ROWS=tile, **options
    )
    _tail[(nodes, groups)](
        staged, *planes, mixes, sums, committed, depth, ancestors, factor, rows, keys.rows, width, staging,
        ancestors.stride(0), ROWS=tiling.tail, **options,
    )  # fmt: skip


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
    (nodes, heads, width), groups = q.shape, keys.heads
    rows = nodes * heads // groups
    require(
        1 <= nodes <= MAX_ROWS
        and depth.shape == (nodes,)
        and depth.is_contiguous()
        and len(ancestors) == nodes
        and (ancestors.stride(1) == 1 or ancestors.shape[1] == 1),
        f"q {tuple(q.shape)}, depth {tuple(depth.shape)} and ancestors {tuple(ancestors.shape)} are not of one pass",
    )
    require(heads % groups == 0 and heads // groups <= MOST_HEADS, f"{heads} heads do not share {groups} by up to 16")
    require(width >= 32 and width & (width - 1) == 0, f"heads of {width} values: a power of two from 32 on is needed")
    require(
        keys.rows == values.rows and groups == values.heads and keys.rows * width < 1 << 31 and keys.rows < LIMIT,
        f"planes of {keys.rows} and {values.rows} rows of {width}",
    )
    q = aligned(q.contiguous())
    shape = state_shape(nodes, heads, groups, width, staging - MAX_ROWS)
    states = torch.empty(math.prod(shape), dtype=torch.float32, device=q.device)
    flat = states.split([math.prod(shape[:3]) * width, math.prod(shape[:3]) * 2])
    mixes, sums = (part.view(*shape[:3], -1) for part in flat)
    fill = filler_of(q.device, width)
    fill(q, keys, values, committed, depth, ancestors, staging, scale * math.log2(math.e), mixes, sums)
    out = torch.empty_like(q)
    columns = min(_COLUMNS, width)
    _fold[(nodes, heads, width // columns)](
        mixes, sums, committed, depth, out, rows, H=heads, G=groups, D=width, CHUNKS=_FOLDED, COLUMNS=columns,
        num_warps=_FOLDERS,
    )  # fmt: skip
    return out
