# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The states of a decode pass on Hopper (README.md): some warps decode rows while others multiply those before.

Letters: R nodes, H query heads, G KV heads, D head dim, C committed rows. A state is that of an online softmax over
some positions: the largest score, the sum of the weights and the weighted sum of the values, both relative to it.

A program has *decoders* of keys and of values (`rows_hopper.py`), which put blocks of rows as halves where wgmma reads
them, and *consumers*, a warpgroup for 64 query rows. Barriers pass a place from one to the other: `full` when it holds
a block, `free` when the products with it are done.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from draftwood.kernels._math import power
from draftwood.kernels.attention.chunks_triton import chunk_of, start_of
from draftwood.kernels.attention.rows_hopper import provide, tiles_for
from draftwood.kernels.codec import KeptRows

MIN_WIDTH, MAX_WIDTH = 64, 256
"""D: less is no row of shared memory as wgmma reads it, more is no accumulator."""

_SHARED = 227 << 10
"""Bytes of shared memory that a program may have."""

_BARRIERS = 96
"""Bytes of it, at most, for barriers."""


@gluon.constexpr_function
def _product(columns, warps):
    """The layout of what a warpgroup or two multiply, 64 rows each."""
    return gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, columns, 16])


@gluon.jit
def _score(b_held, q, k, k_full, block):
    """The product of the queries and the keys of a block, in flight; b_held: the first half of a query's values, if
    held in registers."""
    STAGES: gl.constexpr = k.shape[0]
    HALF: gl.constexpr = q.shape[1] // 2
    SCORES: gl.constexpr = _product(k.shape[1], gl.num_warps())
    b_zero = gl.full([q.shape[0], k.shape[1]], 0.0, gl.float32, SCORES)
    mbarrier.wait(k_full.index(block % STAGES), block // STAGES & 1)
    keys = k.index(block % STAGES)
    if b_held is None:
        return warpgroup_mma(q, keys.permute([1, 0]), b_zero, use_acc=False, is_async=True)
    else:
        first, second = keys.slice(0, HALF, 1).permute([1, 0]), keys.slice(HALF, HALF, 1).permute([1, 0])
        b_s = warpgroup_mma(b_held, first, b_zero, use_acc=False, is_async=True)
        return warpgroup_mma(q.slice(HALF, HALF, 1), second, b_s, is_async=True)


@gluon.jit
def _add_values(b_half, b_mix, v, v_full, block):
    """The values of a block, weighted, added to the mix in flight."""
    STAGES: gl.constexpr = v.shape[0]
    mbarrier.wait(v_full.index(block % STAGES), block // STAGES & 1)
    return warpgroup_mma(b_half, v.index(block % STAGES), b_mix, is_async=True)


@gluon.jit
def _weigh(b_s, b_factor, b_top, b_sum, at, stop, PATH: gl.constexpr, WEIGHTS: gl.constexpr):
    """Scores of positions at .. as weights, what the weights before them are multiplied by, and the state.

    Two launches do this on the same block, and must get the same bits: products by powers of two are exact, and the
    sums that a compiler might fuse or not are fused.
    """
    SHAPE: gl.constexpr = b_s.shape
    if PATH:
        o_key = at + gl.arange(0, SHAPE[1], gl.SliceLayout(0, b_s.type.layout))
        b_s = gl.where((o_key < stop)[None, :].broadcast_to(SHAPE), b_s, -float("inf"))
    b_peak = gl.maximum(b_top, gl.max(b_s, 1) * b_factor)
    b_p = gl.exp2(gl.fma(b_s, b_factor[:, None].broadcast_to(SHAPE), -b_peak[:, None].broadcast_to(SHAPE)))
    b_keep = gl.exp2(b_top - b_peak)
    b_sum = gl.fma(b_sum, b_keep, gl.sum(b_p, 1))
    return gl.convert_layout(b_p.to(gl.float16), WEIGHTS), b_keep, b_peak, b_sum


@gluon.jit
def _attend(
    p_mixes, p_sums, b_factor, begin, end, begun, q, k, v, k_full, k_free, v_full, v_free, first, stop,
    PATH: gl.constexpr,
):  # fmt: skip
    """The consumers' part: the states of the query rows, from those before if `begun`, over all blocks.

    A block's values are mixed while the next one's scores become weights. The mix is touched only while no product is
    in flight, or the compiler puts them one after the other.
    """
    ROWS: gl.constexpr = q.shape[0]
    K_STAGES: gl.constexpr = k.shape[0]
    V_STAGES: gl.constexpr = v.shape[0]
    KEYS: gl.constexpr = k.shape[1]
    D: gl.constexpr = k.shape[2]
    MIX: gl.constexpr = _product(D, gl.num_warps())
    OF_ROW: gl.constexpr = b_factor.type.layout
    OF_MIX: gl.constexpr = gl.SliceLayout(1, MIX)
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, MIX, 2)
    if PATH:
        o_row, o_mix = begin + gl.arange(0, ROWS, OF_ROW), begin + gl.arange(0, ROWS, OF_MIX)
        p_mix = p_mixes + o_mix[:, None] * D + gl.arange(0, D, gl.SliceLayout(0, MIX))[None, :]
        gdc_wait()
        b_top = gl.load(p_sums + o_row * 2, mask=(o_row < end) & begun, other=-float("inf"))
        b_sum = gl.load(p_sums + o_row * 2 + 1, mask=(o_row < end) & begun, other=0.0)
        b_mix = gl.load(p_mix, mask=((o_mix < end) & begun)[:, None], other=0.0)
    else:
        b_top = gl.full([ROWS], -float("inf"), gl.float32, OF_ROW)
        b_sum = gl.full([ROWS], 0.0, gl.float32, OF_ROW)
        b_mix = gl.full([ROWS, D], 0.0, gl.float32, MIX)
    blocks = (stop - first + KEYS - 1) // KEYS
    # A single consumer has registers left: each product then reads half as much of the queries from shared memory.
    if not PATH and gl.num_warps() == 4 and D >= 128:
        b_held = q.slice(0, D // 2, 1).load(gl.DotOperandLayout(0, _product(KEYS, gl.num_warps()), 2))
    else:
        b_held = None
    b_s = warpgroup_mma_wait(0, [_score(b_held, q, k, k_full, 0)])
    mbarrier.arrive(k_free.index(0), count=1)
    b_half, b_keep, b_top, b_sum = _weigh(b_s, b_factor, b_top, b_sum, first, stop, PATH, WEIGHTS)
    b_mix = b_mix * gl.convert_layout(b_keep, OF_MIX)[:, None]
    for block in range(1, blocks):
        last = block - 1
        scores = _score(b_held, q, k, k_full, block)
        mix = _add_values(b_half, b_mix, v, v_full, last)
        b_s = warpgroup_mma_wait(1, [scores])
        mbarrier.arrive(k_free.index(block % K_STAGES), count=1)
        b_next, b_keep, b_top, b_sum = _weigh(b_s, b_factor, b_top, b_sum, first + block * KEYS, stop, PATH, WEIGHTS)
        b_mix, b_half = warpgroup_mma_wait(0, [mix, b_half])
        mbarrier.arrive(v_free.index(last % V_STAGES), count=1)
        b_mix = b_mix * gl.convert_layout(b_keep, OF_MIX)[:, None]
        b_half = b_next
    mix = _add_values(b_half, b_mix, v, v_full, blocks - 1)
    b_mix, b_half = warpgroup_mma_wait(0, [mix, b_half])
    return b_top, b_sum, b_mix


@gluon.jit
def _barriers(NUMBER: gl.constexpr):
    made = gl.allocate_shared_memory(gl.int64, [NUMBER, 1], mbarrier.MBarrierLayout())
    for number in gl.static_range(NUMBER):
        mbarrier.init(made.index(number), count=1)
    return made


@gluon.jit
def _forget(barriers):
    NUMBER: gl.constexpr = barriers.shape[0]
    for number in gl.static_range(NUMBER):
        mbarrier.invalidate(barriers.index(number))


@gluon.jit
def _continue(
    p_q, p_mixes, p_sums, scale, begin, end, begun, group, keys, values, base, first, stop, C, staging, p_path,
    LOAD_K: gl.constexpr, LOAD_V: gl.constexpr, K_WIDTHS: gl.constexpr, V_WIDTHS: gl.constexpr,
    K_ENTRIES: gl.constexpr, V_ENTRIES: gl.constexpr, H: gl.constexpr, G: gl.constexpr, ROWS: gl.constexpr,
    KEYS: gl.constexpr, PART: gl.constexpr, D: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr,
    AHEAD: gl.constexpr, DECODERS: gl.constexpr, REGISTERS: gl.constexpr, PATH: gl.constexpr,
):  # fmt: skip
    """States of query rows begin .. end-1, ROWS at most, over positions first .. stop-1.

    first: a multiple of KEYS. base: the row of position 0. PATH: p_path has the staged nodes at positions C, C+1, ...;
    without it all positions are below C, and stop is a multiple of KEYS.
    """
    HEADS: gl.constexpr = H // G
    WARPS: gl.constexpr = gl.num_warps()
    SCORES: gl.constexpr = _product(KEYS, WARPS)
    MIX: gl.constexpr = _product(D, WARPS)
    HALVES: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    QUERIES: gl.constexpr = gl.BlockedLayout([1, 4], [32 * 4 // min(D, 128), min(D, 128) // 4], [WARPS, 1], [1, 0])
    PARTS: gl.constexpr = AHEAD * KEYS // PART
    k_tiles, v_tiles = tiles_for(keys, K_WIDTHS, PARTS, PART), tiles_for(values, V_WIDTHS, PARTS, PART)
    q = gl.allocate_shared_memory(gl.float16, [ROWS, D], HALVES)
    k = gl.allocate_shared_memory(gl.float16, [K_STAGES, KEYS, D], HALVES)
    v = gl.allocate_shared_memory(gl.float16, [V_STAGES, KEYS, D], HALVES)
    k_full, k_free, v_full, v_free = _barriers(K_STAGES), _barriers(K_STAGES), _barriers(V_STAGES), _barriers(V_STAGES)
    # Queries as halves, each row divided by a power of two that brings its largest under 2**15.
    o_row = begin + gl.arange(0, ROWS, gl.SliceLayout(1, QUERIES))
    p_row = p_q + (o_row // HEADS * H + group * HEADS + o_row % HEADS)[:, None] * D
    o_d = gl.arange(0, D, gl.SliceLayout(0, QUERIES))
    b_q = gl.load(p_row + o_d[None, :], mask=(o_row < end)[:, None], other=0.0) * scale
    b_factor, b_inverse = power(gl.max(gl.abs(b_q), 1))
    q.store((b_q * b_inverse[:, None]).to(gl.float16))
    b_factor = gl.convert_layout(b_factor, gl.SliceLayout(1, SCORES))
    fence_async_shared()
    # What the decoders are handed may be put where the conversion's numbers are, and the compiler sees no danger there.
    gl.thread_barrier()
    b_top, b_sum, b_mix = gl.warp_specialize(
        [
            (_attend, (
                p_mixes, p_sums, b_factor, begin, end, begun, q, k, v, k_full, k_free, v_full, v_free, first, stop,
                PATH,
            )),
            (provide, (
                keys, k_tiles, k, k_full, k_free, base, first, stop, C, staging, p_path, LOAD_K, len(K_WIDTHS),
                K_ENTRIES, PATH,
            )),
            (provide, (
                values, v_tiles, v, v_full, v_free, base, first, stop, C, staging, p_path, LOAD_V, len(V_WIDTHS),
                V_ENTRIES, PATH,
            )),
        ],
        [DECODERS, DECODERS],
        [REGISTERS, REGISTERS],
    )  # fmt: skip
    _forget(k_full)
    _forget(k_free)
    _forget(v_full)
    _forget(v_free)
    o_sum = begin + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
    o_mix = begin + gl.arange(0, ROWS, gl.SliceLayout(1, MIX))
    gl.store(p_sums + o_sum * 2, b_top, mask=o_sum < end)
    gl.store(p_sums + o_sum * 2 + 1, b_sum, mask=o_sum < end)
    p_mix = p_mixes + o_mix[:, None] * D + gl.arange(0, D, gl.SliceLayout(0, MIX))[None, :]
    gl.store(p_mix, b_mix, mask=(o_mix < end)[:, None])


@gluon.jit(do_not_specialize=["begin", "all_rows"])
def _bulk(
    p_q, p_k0, p_k1, p_k2, p_k3, p_v0, p_v1, p_v2, p_v3, p_mixes, p_sums, p_committed, scale, begin, all_rows,
    plane_rows,
    LOAD_K: gl.constexpr, LOAD_V: gl.constexpr, K_WIDTHS: gl.constexpr, V_WIDTHS: gl.constexpr,
    K_ENTRIES: gl.constexpr, V_ENTRIES: gl.constexpr, H: gl.constexpr, G: gl.constexpr, ROWS: gl.constexpr,
    KEYS: gl.constexpr, PART: gl.constexpr, D: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr,
    AHEAD: gl.constexpr, DECODERS: gl.constexpr, REGISTERS: gl.constexpr, SECOND: gl.constexpr,
):  # fmt: skip
    """As `triton._bulk`, from query row `begin` on. What comes after may begin while it ends; where it begins itself
    while the first of two launches ends, it ends after that, so that what waits for this has waited for both."""
    gdc_launch_dependents()
    tile, group = gl.program_id(0), gl.program_id(1)
    # The largest chunks begin.
    chunk = gl.num_programs(2) - 1 - gl.program_id(2)
    first = start_of(chunk)
    stop = gl.minimum(gl.load(p_committed).to(gl.int32) // KEYS * KEYS, start_of(chunk + 1))
    if first < stop:
        state = (chunk * G + group).to(gl.int64) * all_rows
        _continue(
            p_q, p_mixes + state * D, p_sums + state * 2, scale, begin + tile * ROWS, all_rows, False, group,
            (p_k0, p_k1, p_k2, p_k3), (p_v0, p_v1, p_v2, p_v3), group.to(gl.int64) * plane_rows, first, stop, 0, 0,
            p_committed, LOAD_K, LOAD_V, K_WIDTHS, V_WIDTHS, K_ENTRIES, V_ENTRIES, H, G, ROWS, KEYS, PART, D,
            K_STAGES, V_STAGES, AHEAD, DECODERS, REGISTERS, False,
        )  # fmt: skip
        if SECOND:
            gdc_wait()


@gluon.jit(do_not_specialize=["all_rows", "path_stride"])
def _tail(
    p_q, p_k0, p_k1, p_k2, p_k3, p_v0, p_v1, p_v2, p_v3, p_mixes, p_sums, p_committed, p_depth, p_ancestors, scale,
    all_rows, plane_rows, staging, path_stride,
    LOAD_K: gl.constexpr, LOAD_V: gl.constexpr, K_WIDTHS: gl.constexpr, V_WIDTHS: gl.constexpr,
    K_ENTRIES: gl.constexpr, V_ENTRIES: gl.constexpr, H: gl.constexpr, G: gl.constexpr, ROWS: gl.constexpr,
    KEYS: gl.constexpr, PART: gl.constexpr, D: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr,
    AHEAD: gl.constexpr, DECODERS: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """As `triton._tail`. It begins while `_bulk` ends, and waits for it where it needs its states."""
    node, group = gl.program_id(0), gl.program_id(1)
    HEADS: gl.constexpr = H // G
    committed = gl.load(p_committed).to(gl.int32)
    end = committed + gl.load(p_depth + node).to(gl.int32) + 1
    whole = committed // KEYS * KEYS
    for chunk in range(chunk_of(whole), chunk_of(end - 1) + 1):
        first = gl.maximum(start_of(chunk), whole)
        state = (chunk * G + group).to(gl.int64) * all_rows
        # Of a chunk that begins further back the first launch did the part below.
        _continue(
            p_q, p_mixes + state * D, p_sums + state * 2, scale, node * HEADS, node * HEADS + HEADS,
            first > start_of(chunk), group, (p_k0, p_k1, p_k2, p_k3), (p_v0, p_v1, p_v2, p_v3),
            group.to(gl.int64) * plane_rows, first, gl.minimum(end, start_of(chunk + 1)), committed, staging,
            p_ancestors + node * path_stride, LOAD_K, LOAD_V, K_WIDTHS, V_WIDTHS, K_ENTRIES, V_ENTRIES, H, G, ROWS,
            KEYS, PART, D, K_STAGES, V_STAGES, AHEAD, DECODERS, REGISTERS, True,
        )  # fmt: skip


def shape_of(keys: KeptRows, values: KeptRows, width: int, consumers: int) -> dict[str, int]:
    """Constants of a launch with 64 query rows for each of one or two consumers.

    Consumers of 240 or 208 registers a lane leave room for eight decoding warps, half of them for keys, or for four.
    Beside one consumer, blocks are copied two ahead where that leaves places for two of keys and one of values. Rows of
    float32 come in blocks of 32. A part of a block is what decoders have registers for. Rows kept as halves are not
    decoded, and a third place for them is a second block on its way.
    """
    wide = any(field.dtype == torch.float32 for field in keys.fields + values.fields)
    block, decoders = 32 if wide else 64, 4 // consumers
    row = sum(
        field.shape[2] * field.element_size() for kept in (keys, values) if kept.halves is None for field in kept.fields
    )
    room = _SHARED - _BARRIERS - consumers * 64 * width * 2
    ahead, place = 2, block * width * 2
    if consumers == 2 or room - ahead * block * row < 3 * place:
        ahead = 1
    places = (room - ahead * block * row) // place
    most = [2 if kept.halves is None else 3 for kept in (keys, values)]
    return {
        "ROWS": 64 * consumers, "KEYS": block, "PART": min(block, decoders * (8 if wide else 16)), "D": width,
        "K_STAGES": min(places - places // 2, most[0]), "V_STAGES": min(places // 2, most[1]), "AHEAD": ahead,
        "DECODERS": decoders, "REGISTERS": 128 if consumers == 1 else 88, "num_warps": 4 * consumers,
    }  # fmt: skip


def codecs_of(keys: KeptRows, values: KeptRows) -> dict[str, Any]:
    """Constants of all launches: how rows become halves, and nothing where they are kept as such."""
    constants: dict[str, Any] = {}
    for name, kept in (("K", keys), ("V", values)):
        coded = kept.halves is None
        constants[f"LOAD_{name}"] = kept.codec.load if coded else None
        constants[f"{name}_WIDTHS"] = tuple(field.shape[2] for field in kept.fields) if coded else ()
        constants[f"{name}_ENTRIES"] = sum(len(table) for table in kept.tables)
    return constants


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
    """See `triton.fill_states`."""
    (nodes, heads, width), groups = q.shape, keys.heads
    rows = nodes * heads // groups
    planes = *keys.pointers, *values.pointers
    options = {"H": heads, "G": groups, **codecs_of(keys, values)}
    # A rest of up to 64 rows is half the work of a program that has rows for two consumers.
    whole = 0 if rows <= 64 else rows // 128 * 128 if rows % 128 <= 64 else rows
    for begin, end, consumers in ((0, whole, 2), (whole, rows, 1)):
        if begin < end:
            second = begin > 0
            _bulk[(triton.cdiv(end - begin, 64 * consumers), groups, len(mixes))](
                q, *planes, mixes, sums, committed, scale, begin, rows, keys.rows, **options,
                **shape_of(keys, values, width, consumers), SECOND=second, launch_pdl=second,
            )  # fmt: skip
    _tail[(nodes, groups)](
        q, *planes, mixes, sums, committed, depth, ancestors, scale, rows, keys.rows, staging,
        ancestors.stride(0), **options, **shape_of(keys, values, width, 1), launch_pdl=True,
    )  # fmt: skip
