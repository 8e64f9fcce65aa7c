# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The states of a decode pass on Hopper (README.md): some warps decode rows while others multiply those before.

Letters: R nodes, H query heads, G KV heads, D head dim, C committed rows. A state is that of an online softmax over
some positions: the largest score, the sum of the weights and the weighted sum of the values, both relative to it.

A program has *decoders*, which copy blocks of rows as they are kept, turn them into halves and put these where wgmma
reads them, and *consumers*, a warpgroup for 64 query rows. Barriers pass a place from one to the other: `full` when it
holds a block, `free` when the products with it are done.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from draftwood.kernels._math import power
from draftwood.kernels.attention.chunks_triton import chunk_of, start_of
from draftwood.kernels.codec import KeptRows

MIN_WIDTH, MAX_WIDTH = 64, 256
"""D: less is no row of shared memory as wgmma reads it, more is no accumulator."""

_SHARED = 227 << 10
"""Bytes of shared memory that a program may have."""

_BARRIERS = 64
"""Bytes of it, at most, for barriers."""


@gluon.constexpr_function
def _who_copies(tile, warps):
    """Sixteen bytes a lane, or a row."""
    each = min(128 // tile.dtype.primitive_bitwidth, tile.shape[1])
    across = min(tile.shape[1] // each, 32)
    return gl.BlockedLayout([1, each], [32 // across, across], [warps, 1], [1, 0])


@gluon.jit
def _places(at, stop, C, staging, p_path, KEYS: gl.constexpr, PATH: gl.constexpr, LAYOUT: gl.constexpr):
    """Rows of the planes that hold positions at .. at+KEYS-1, and which of these are below `stop`."""
    b_row = at + gl.arange(0, KEYS, LAYOUT)
    m_row = b_row < stop
    if PATH:
        m_staged = b_row >= C
        b_node = gl.load(p_path + (b_row - C), mask=m_row & m_staged, other=0)
        b_row = gl.where(m_staged, staging + b_node.to(gl.int32), b_row)
    return b_row, m_row


@gluon.jit
def _copy(p_field, tile, base, at, stop, C, staging, p_path, PATH: gl.constexpr):
    """Begin to copy a field's rows of positions at .. into its tile; from `stop` on, zeros."""
    KEYS: gl.constexpr = tile.shape[0]
    WIDTH: gl.constexpr = tile.shape[1]
    WHO: gl.constexpr = _who_copies(tile, gl.num_warps())
    o_value = gl.arange(0, WIDTH, gl.SliceLayout(0, WHO))
    if PATH:
        b_row, m_row = _places(at, stop, C, staging, p_path, KEYS, PATH, gl.SliceLayout(1, WHO))
        p_row = p_field + base * WIDTH + (b_row[:, None] * WIDTH + o_value[None, :])
        async_copy.async_copy_global_to_shared(tile, p_row, mask=m_row[:, None])
    else:
        # Whole blocks: one condition, and addresses that differ by numbers known here.
        o_row = gl.arange(0, KEYS, gl.SliceLayout(1, WHO))
        p_row = p_field + (base + at) * WIDTH + (o_row[:, None] * WIDTH + o_value[None, :])
        m_all = gl.full([KEYS, WIDTH], 0, gl.int32, WHO) + at < stop
        async_copy.async_copy_global_to_shared(tile, p_row, mask=m_all)


@gluon.jit
def _copy_wide(tensors, tiles, base, at, stop, C, staging, p_path, FIELDS: gl.constexpr, PATH: gl.constexpr):
    """All fields but those of one number a row."""
    for number in gl.static_range(FIELDS):
        if len(tiles[number].shape) == 2:
            _copy(tensors[number], tiles[number], base, at, stop, C, staging, p_path, PATH)
    async_copy.commit_group()


@gluon.jit
def _load_norms(p_field, base, at, stop, C, staging, p_path, KEYS: gl.constexpr, PATH: gl.constexpr):
    """A field of one number a row, which is less than can be copied: by way of registers."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    b_row, m_row = _places(at, stop, C, staging, p_path, KEYS, PATH, LAYOUT)
    return gl.load(p_field + base + b_row, mask=m_row, other=0.0)


def _value(constant: Any) -> Any:
    return getattr(constant, "value", constant)


def _tiles(tensors: Any, widths: Any, keys: Any, _semantic: Any = None) -> Any:
    """A codec's tensors with room in shared memory for `keys` rows of its fields, which have so many numbers a row."""
    made = []
    for tensor, width in zip(tensors, _value(widths), strict=False):
        shape = [_value(keys), _value(width)][: 1 if _value(width) == 1 else 2]
        layout = gl.SwizzledSharedLayout(1, 1, 1, [*reversed(range(len(shape)))])
        made.append(_semantic.allocate_shared(tensor.dtype.element_ty, shape, layout, None))
    tables = [tensor for tensor in list(tensors)[len(made) :] if _value(tensor) is not None]
    return gl.tuple([*made, *tables])


def _with_tables(tiles: Any, fields: Any, entries: Any, _semantic: Any = None) -> Any:
    """Tiles with the tables behind them read into registers, `entries` numbers each."""
    tables = []
    for table in list(tiles)[_value(fields) :]:
        places = [_semantic.add(table, _semantic.to_tensor(place), True) for place in range(_value(entries))]
        loads = (_semantic.load(place, None, None, (), "", "", "", False) for place in places)
        tables.append(gl.tuple([*loads]))
    return gl.tuple([*list(tiles)[: _value(fields)], *tables])


_tiles.__triton_builtin__ = _with_tables.__triton_builtin__ = True  # type: ignore[attr-defined]


@gluon.jit
def _decode(
    tensors, tiles, rows, full, free, base, first, stop, C, staging, p_path, LOAD: gl.constexpr, FIELDS: gl.constexpr,
    PATH: gl.constexpr, block,
):  # fmt: skip
    """Block number `block` of the keys or values, copied before, into its place; the copy of the next one begins."""
    STAGES: gl.constexpr = rows.shape[0]
    KEYS: gl.constexpr = rows.shape[1]
    D: gl.constexpr = rows.shape[2]
    NORMS: gl.constexpr = len(tiles[0].shape) == 1
    at = first + (block + 1) * KEYS
    if NORMS:
        b_norm = _load_norms(tensors[0], base, at, stop, C, staging, p_path, KEYS, PATH)
    async_copy.wait_group(1)
    mbarrier.wait(free.index(block % STAGES), (block // STAGES & 1) ^ 1)
    rows.index(block % STAGES).store(LOAD(tiles, 0, None, None, 0, D, D))
    fence_async_shared()
    mbarrier.arrive(full.index(block % STAGES), count=1)
    if NORMS:
        tiles[0].store(b_norm)
    _copy_wide(tensors, tiles, base, at, stop, C, staging, p_path, FIELDS, PATH)


@gluon.jit
def _decode_all(
    keys, values, k_tiles, v_tiles, k, v, k_full, k_free, v_full, v_free, base, first, stop, C, staging, p_path,
    LOAD_K: gl.constexpr, LOAD_V: gl.constexpr, K_FIELDS: gl.constexpr, V_FIELDS: gl.constexpr,
    K_ENTRIES: gl.constexpr, V_ENTRIES: gl.constexpr, PATH: gl.constexpr,
):  # fmt: skip
    """The decoders' part: all blocks, keys one ahead."""
    KEYS: gl.constexpr = k.shape[1]
    blocks = (stop - first + KEYS - 1) // KEYS
    if len(k_tiles[0].shape) == 1:
        k_tiles[0].store(_load_norms(keys[0], base, first, stop, C, staging, p_path, KEYS, PATH))
    if len(v_tiles[0].shape) == 1:
        v_tiles[0].store(_load_norms(values[0], base, first, stop, C, staging, p_path, KEYS, PATH))
    _copy_wide(keys, k_tiles, base, first, stop, C, staging, p_path, K_FIELDS, PATH)
    _copy_wide(values, v_tiles, base, first, stop, C, staging, p_path, V_FIELDS, PATH)
    k_tiles = _with_tables(k_tiles, K_FIELDS, K_ENTRIES)
    v_tiles = _with_tables(v_tiles, V_FIELDS, V_ENTRIES)
    _decode(keys, k_tiles, k, k_full, k_free, base, first, stop, C, staging, p_path, LOAD_K, K_FIELDS, PATH, 0)
    for block in range(blocks):
        _decode(
            values, v_tiles, v, v_full, v_free, base, first, stop, C, staging, p_path, LOAD_V, V_FIELDS, PATH, block
        )
        if block + 1 < blocks:
            _decode(
                keys, k_tiles, k, k_full, k_free, base, first, stop, C, staging, p_path, LOAD_K, K_FIELDS, PATH,
                block + 1,
            )  # fmt: skip
    async_copy.wait_group(0)


@gluon.jit
def _score(q, k, k_full, block):
    """The product of the queries and the keys of a block, in flight."""
    STAGES: gl.constexpr = k.shape[0]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, k.shape[1], 16])
    b_zero = gl.full([q.shape[0], k.shape[1]], 0.0, gl.float32, SCORES)
    mbarrier.wait(k_full.index(block % STAGES), block // STAGES & 1)
    return warpgroup_mma(q, k.index(block % STAGES).permute([1, 0]), b_zero, use_acc=False, is_async=True)


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
    MIX: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, D, 16])
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
    b_s = warpgroup_mma_wait(0, [_score(q, k, k_full, 0)])
    mbarrier.arrive(k_free.index(0), count=1)
    b_half, b_keep, b_top, b_sum = _weigh(b_s, b_factor, b_top, b_sum, first, stop, PATH, WEIGHTS)
    b_mix = b_mix * gl.convert_layout(b_keep, OF_MIX)[:, None]
    for block in range(1, blocks):
        last = block - 1
        scores = _score(q, k, k_full, block)
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
    KEYS: gl.constexpr, D: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, DECODERS: gl.constexpr,
    REGISTERS: gl.constexpr, PATH: gl.constexpr,
):  # fmt: skip
    """States of query rows begin .. end-1, ROWS at most, over positions first .. stop-1.

    first: a multiple of KEYS. base: the row of position 0. PATH: p_path has the staged nodes at positions C, C+1, ...;
    without it all positions are below C, and stop is a multiple of KEYS.
    """
    HEADS: gl.constexpr = H // G
    WARPS: gl.constexpr = gl.num_warps()
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, KEYS, 16])
    MIX: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, D, 16])
    HALVES: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    QUERIES: gl.constexpr = gl.BlockedLayout([1, 4], [32 * 4 // min(D, 128), min(D, 128) // 4], [WARPS, 1], [1, 0])
    k_tiles, v_tiles = _tiles(keys, K_WIDTHS, KEYS), _tiles(values, V_WIDTHS, KEYS)
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
            (_decode_all, (
                keys, values, k_tiles, v_tiles, k, v, k_full, k_free, v_full, v_free, base, first, stop, C, staging,
                p_path, LOAD_K, LOAD_V, len(K_WIDTHS), len(V_WIDTHS), K_ENTRIES, V_ENTRIES, PATH,
            )),
        ],
        [DECODERS],
        [REGISTERS],
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
    KEYS: gl.constexpr, D: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, DECODERS: gl.constexpr,
    REGISTERS: gl.constexpr, SECOND: gl.constexpr,
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
            p_committed, LOAD_K, LOAD_V, K_WIDTHS, V_WIDTHS, K_ENTRIES, V_ENTRIES, H, G, ROWS, KEYS, D, K_STAGES,
            V_STAGES, DECODERS, REGISTERS, False,
        )  # fmt: skip
        if SECOND:
            gdc_wait()


@gluon.jit(do_not_specialize=["all_rows", "path_stride"])
def _tail(
    p_q, p_k0, p_k1, p_k2, p_k3, p_v0, p_v1, p_v2, p_v3, p_mixes, p_sums, p_committed, p_depth, p_ancestors, scale,
    all_rows, plane_rows, staging, path_stride,
    LOAD_K: gl.constexpr, LOAD_V: gl.constexpr, K_WIDTHS: gl.constexpr, V_WIDTHS: gl.constexpr,
    K_ENTRIES: gl.constexpr, V_ENTRIES: gl.constexpr, H: gl.constexpr, G: gl.constexpr, ROWS: gl.constexpr,
    KEYS: gl.constexpr, D: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, DECODERS: gl.constexpr,
    REGISTERS: gl.constexpr,
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
            KEYS, D, K_STAGES, V_STAGES, DECODERS, REGISTERS, True,
        )  # fmt: skip


def shape_of(keys: KeptRows, values: KeptRows, width: int, consumers: int) -> dict[str, int]:
    """Constants of a launch with 64 query rows for each of one or two consumers.

    Consumers of 240 or 208 registers a lane leave room for eight decoding warps or for four, and narrow rows are not
    enough for eight. Rows of float32 come in blocks of 32.
    """
    row = sum(field.shape[2] * field.element_size() for field in keys.fields + values.fields)
    block = 32 if any(field.dtype == torch.float32 for field in keys.fields + values.fields) else 64
    places = (_SHARED - _BARRIERS - consumers * 64 * width * 2 - block * row) // (block * width * 2)
    decoders = 8 if consumers == 1 and width > 64 else 4
    return {
        "ROWS": 64 * consumers, "KEYS": block, "D": width, "K_STAGES": 2 if places > 2 else 1,
        "V_STAGES": 2 if places > 3 else 1, "DECODERS": decoders, "REGISTERS": 128 if decoders == 8 else 88,
        "num_warps": 4 * consumers,
    }  # fmt: skip


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
    options = {"LOAD_K": keys.codec.load, "LOAD_V": values.codec.load, "H": heads, "G": groups}
    for name, kept in (("K", keys), ("V", values)):
        options[f"{name}_WIDTHS"] = tuple(field.shape[2] for field in kept.fields)
        options[f"{name}_ENTRIES"] = sum(len(table) for table in kept.tables)
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
