"""The gated delta rule on a GPU (README.md beside this file has the maths, the launches and what they should take).

Letters as in the reference. A visit is a node in its place of the depth-first walk. A column of the state is one value
dimension; a program owns COLUMNS of them and keeps the state as K / LANES tiles [LANES, COLUMNS].

The decode kernels are compiled without fused multiply-add, but for `tl.fma`, and add in an order that is written out
(`_halves`). So what a node's values are does not depend on how Triton lays a kernel out: decoding and committing, two
kernels, agree bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.batch import GRANULE, MAX_ROWS
from draftwood.kernels._math import silu
from draftwood.kernels._rows import aligned, is_aligned, require, row_stride
from draftwood.kernels.delta_rule.layer import DeltaLayer
from draftwood.kernels.delta_rule.reference import TAPS, DeltaShape
from draftwood.kernels.scratch import PLAN_WIDTH, chunk_shapes, slot_shape, visit_width

LANES = 16
"""Rows of a tile of the state: what the lanes of a warp hold of K. A dot product's order depends on it alone."""

COLUMNS = 8
"""Columns of a program that visits a tree: small, as a visit is bound by latency and many warps hide it."""

_VALUES = 32
"""Columns of v that a prefill program without a state multiplies at a time."""

PREFILL_ROWS = 16
"""Rows of a program that convolves a prefill pass."""

_NO_WGMMA = "DISABLE_MMA_V3"
"""The variable by which Triton's compiler leaves wgmma out."""

EXACT = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}
"""Launch options of the decode kernels: one warp, so that no sum crosses warps."""


@dataclass(frozen=True)
class Tiling:
    """Blocks that differ between devices; none changes a bit of decoding.

    commit: columns of a program that commits; more are better, as each convolves its head's keys again. keys: of K, and
    of V, that a product of prefill takes at a time. granule_warps, pass_warps: of the two kernels with products.
    columns: of a program that goes through a pass; few, as its granules come one after the other.
    """

    commit: int
    keys: int
    granule_warps: int
    pass_warps: int
    columns: int


NVIDIA = Tiling(commit=16, keys=32, granule_warps=4, pass_warps=4, columns=16)

AMD = Tiling(commit=8, keys=32, granule_warps=16, pass_warps=8, columns=32)
"""An operand of WMMA takes twice its size in registers."""

_TABLE = tl.constexpr(6)
"""Pointers of a layer in the table of `layer_table`."""

# Columns of a plan: the node, the rows of (window, nodes) that its convolution reads besides its own, nearest first,
# where the state comes from, and the slot that keeps it.
_NODE, _TAP, _START, _KEEP = (tl.constexpr(at) for at in (0, 1, 4, 5))
_PLAN_WIDTH = tl.constexpr(PLAN_WIDTH)
_GOES_ON, _COMMITTED = tl.constexpr(-2), tl.constexpr(-1)
_WINDOW = tl.constexpr(TAPS - 1)


@triton.jit
def _halves(b_x, N: tl.constexpr, C: tl.constexpr):
    """[N, C] -> [C], adding row i and row i + N/2 until one is left: an order that no layout changes."""
    for level in tl.static_range(10):
        if (N >> level) > 1:
            b_x = tl.sum(tl.reshape(b_x, (2, N >> (level + 1), C)), 0)
    return tl.reshape(b_x, (C,))


@triton.jit
def _tile_halves(b_x, TILES: tl.constexpr, N: tl.constexpr):
    """TILES of [N] -> [1]: what `_halves` makes of them as one column [TILES * N, 1]."""
    for level in tl.static_range(10):
        if (TILES >> level) > 1:
            b_more = ()
            for t in tl.static_range(TILES >> (level + 1)):
                b_more = b_more + (b_x[t] + b_x[t + (TILES >> (level + 1))],)  # type: ignore[assignment]  # noqa: RUF005
            b_x = b_more
    return _halves(tl.reshape(b_x[0], (N, 1)), N, 1)


@triton.jit
def _convolve(b_0, b_1, b_2, b_3, b_w0, b_w1, b_w2, b_w3):
    """SiLU of four taps, oldest first."""
    return silu(tl.fma(b_3, b_w3, tl.fma(b_2, b_w2, tl.fma(b_1, b_w1, b_0 * b_w0))))


@triton.jit
def _inverse_length(squares, eps):
    return 1.0 / tl.maximum(tl.sqrt(squares), eps)


@triton.jit
def _log_decay(a, bias, rate):
    """rate * softplus(a + bias), with all digits where the exponential is small."""
    x = a + bias
    e = tl.exp(tl.minimum(x, 20.0))
    u = 1.0 + e
    log = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return rate * tl.where(x > 20.0, x, log)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tiles(p, STRIDE: tl.constexpr, TILES: tl.constexpr):
    """TILES tiles that begin STRIDE apart."""
    b_x = ()
    for t in tl.static_range(TILES):
        b_x = b_x + (tl.load(p + t * STRIDE),)  # type: ignore[assignment]  # noqa: RUF005
    return b_x


@triton.jit
def _store_tiles(p, b_x, STRIDE: tl.constexpr, TILES: tl.constexpr):
    for t in tl.static_range(TILES):
        tl.store(p + t * STRIDE, b_x[t])


@triton.jit
def _dot(b_s, b_k, TILES: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """S^T k: TILES of [LANES, COLUMNS] and of [LANES] -> [COLUMNS]."""
    b_sum = b_s[0] * b_k[0][:, None]
    for t in tl.static_range(1, TILES):
        b_sum = tl.fma(b_s[t], tl.broadcast_to(b_k[t][:, None], (LANES, COLUMNS)), b_sum)
    return _halves(b_sum, LANES, COLUMNS)


@triton.jit
def _correction(b_s, b_k, b_v, decay, beta, TILES: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """beta (v - (decay S)^T k), [COLUMNS]."""
    return (b_v - _dot(b_s, b_k, TILES, LANES, COLUMNS) * decay) * beta


@triton.jit
def _update(b_s, b_k, b_correction, decay, TILES: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """decay S + k correction^T."""
    b_wide = tl.broadcast_to(b_correction[None, :], (LANES, COLUMNS))
    b_new = ()
    for t in tl.static_range(TILES):
        b_new = b_new + (tl.fma(tl.broadcast_to(b_k[t][:, None], (LANES, COLUMNS)), b_wide, b_s[t] * decay),)  # type: ignore[assignment]  # noqa: RUF005
    return b_new


@triton.jit(do_not_specialize=["rows"])
def _plan(p_parents, p_order, p_plan, rows, BLOCK: tl.constexpr):
    """One line for every visit. A state is alive until the visit to its last child begins, so states lie on a stack."""
    o_i = tl.arange(0, BLOCK)
    m_i = o_i < rows
    b_node = tl.load(p_order + o_i, mask=m_i, other=-1)
    b_parent = tl.load(p_parents + b_node, mask=m_i, other=-1).to(tl.int32)
    m_is_parent = (b_node[None, :] == b_parent[:, None]) & (b_parent[:, None] >= 0)
    b_place = tl.sum(tl.where(m_is_parent, o_i[None, :] + 1, 0), 1) - 1
    b_last = tl.max(tl.where(b_place[:, None] == o_i[None, :], o_i[:, None], -1), 0)
    m_alive = (o_i[:, None] < o_i[None, :]) & (b_last[:, None] > o_i[None, :])
    b_slot = tl.sum(tl.where(m_alive, 1, 0), 0)
    b_from = tl.sum(tl.where(b_place[:, None] == o_i[None, :], b_slot[None, :], 0), 1)
    b_from = tl.where(b_place < 0, _COMMITTED, b_from)
    b_from = tl.where(b_place == o_i - 1, _GOES_ON, b_from)
    p_line = p_plan + o_i * _PLAN_WIDTH
    tl.store(p_line + _NODE, b_node, mask=m_i)
    tl.store(p_line + _START, b_from, mask=m_i)
    tl.store(p_line + _KEEP, tl.where(b_last > o_i + 1, b_slot, -1), mask=m_i)
    b_at = b_parent
    for tap in tl.static_range(3):
        tl.store(p_line + _TAP + tap, b_at + _WINDOW, mask=m_i)
        b_above = tl.load(p_parents + b_at, mask=m_i & (b_at >= 0), other=-1).to(tl.int32)
        b_at = tl.where(b_at >= 0, b_above, b_at - 1)


@triton.jit
def _tap(p_raw, p_window, row, o_f, RAW_STRIDE: tl.constexpr, F: tl.constexpr, TAPE: tl.constexpr):
    """Channels o_f of a row of (window, nodes), as the tape has them."""
    m_node = (row >= _WINDOW) & (o_f >= 0)
    m_window = (row < _WINDOW) & (o_f >= 0)
    b_node = tl.load(p_raw + (row - _WINDOW).to(tl.int64) * RAW_STRIDE + o_f, mask=m_node, other=0.0)
    b_window = tl.load(p_window + row * F + o_f, mask=m_window, other=0.0)
    return tl.where(m_node, b_node.to(TAPE).to(tl.float32), b_window)


@triton.jit
def _mixed(p_raw, p_window, p_conv, p_tape, p_line, visit, o_f, RAW_STRIDE: tl.constexpr, F: tl.constexpr):
    """Channels o_f of a visit after convolution and SiLU. Writes them raw to the tape, and the window once."""
    TAPE: tl.constexpr = p_tape.dtype.element_ty
    node = tl.load(p_line + _NODE)
    b_own = tl.load(p_raw + node.to(tl.int64) * RAW_STRIDE + o_f).to(TAPE)
    tl.store(p_tape + (node + _WINDOW).to(tl.int64) * F + o_f, b_own)
    if visit == 0:
        for row in tl.static_range(3):
            tl.store(p_tape + row * F + o_f, tl.load(p_window + row * F + o_f).to(TAPE))
    b_2 = _tap(p_raw, p_window, tl.load(p_line + _TAP), o_f, RAW_STRIDE, F, TAPE)
    b_1 = _tap(p_raw, p_window, tl.load(p_line + _TAP + 1), o_f, RAW_STRIDE, F, TAPE)
    b_0 = _tap(p_raw, p_window, tl.load(p_line + _TAP + 2), o_f, RAW_STRIDE, F, TAPE)
    b_w0, b_w1, b_w2, b_w3 = _tiles(p_conv + o_f, F, 4)
    return _convolve(b_0, b_1, b_2, b_own.to(tl.float32), b_w0, b_w1, b_w2, b_w3)


@triton.jit
def _stage(
    p_raw, p_a, p_b, p_window, p_conv, p_rate, p_bias, p_plan, p_tape, p_decay, p_beta, p_visits, eps, scale,
    RAW_STRIDE: tl.constexpr, A_STRIDE: tl.constexpr, B_STRIDE: tl.constexpr, HK: tl.constexpr, HV: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Of one visit, q and k of one key head, or v and the gates of one value head."""
    F: tl.constexpr = 2 * HK * K + HV * V
    visit, head = tl.program_id(1), tl.program_id(0)
    p_line = p_plan + visit * _PLAN_WIDTH
    p_visit = p_visits + visit.to(tl.int64) * (F + HK + 2 * HV)
    if head < HK:
        o_k = head * K + tl.arange(0, K)
        b_q = _mixed(p_raw, p_window, p_conv, p_tape, p_line, visit, o_k, RAW_STRIDE, F)
        b_k = _mixed(p_raw, p_window, p_conv, p_tape, p_line, visit, HK * K + o_k, RAW_STRIDE, F)
        b_q = b_q * _inverse_length(_halves(tl.reshape(b_q * b_q, (K, 1)), K, 1), eps) * scale
        b_k = b_k * _inverse_length(_halves(tl.reshape(b_k * b_k, (K, 1)), K, 1), eps)
        tl.store(p_visit + o_k, b_q)
        tl.store(p_visit + HK * K + o_k, b_k)
        tl.store(p_visit + F + head + tl.arange(0, 1), _halves(tl.reshape(b_q * b_k, (K, 1)), K, 1))
    else:
        value = head - HK
        o_v = 2 * HK * K + value * V + tl.arange(0, V)
        tl.store(p_visit + o_v, _mixed(p_raw, p_window, p_conv, p_tape, p_line, visit, o_v, RAW_STRIDE, F))
        node = tl.load(p_line + _NODE).to(tl.int64)
        a, b = tl.load(p_a + node * A_STRIDE + value), tl.load(p_b + node * B_STRIDE + value)
        decay = tl.exp(_log_decay(a, tl.load(p_bias + value), tl.load(p_rate + value)))
        beta = _sigmoid(b)
        tl.store(p_decay + node * HV + value, decay)
        tl.store(p_beta + node * HV + value, beta)
        tl.store(p_visit + F + HK + value, decay)
        tl.store(p_visit + F + HK + HV + value, beta)


@triton.jit(do_not_specialize=["rows"])
def _tree_rule(
    p_visits, p_state, p_plan, p_slots, p_out, rows, HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """All visits for COLUMNS of one head. What a visit reads besides the state is loaded one visit ahead."""
    F: tl.constexpr = 2 * HK * K + HV * V
    WIDTH: tl.constexpr = F + HK + 2 * HV
    TILES: tl.constexpr = K // LANES
    TILE: tl.constexpr = LANES * V
    block, head = tl.program_id(0), tl.program_id(1)
    key = head % HK
    o_l, o_c = tl.arange(0, LANES), block * COLUMNS + tl.arange(0, COLUMNS)
    o_s = head * (K * V) + o_l[:, None] * V + o_c[None, :]
    o_q, o_v = key * K + o_l, 2 * HK * K + head * V + o_c
    b_s = _tiles(p_state + o_s, TILE, TILES)

    b_q, b_k = _tiles(p_visits + o_q, LANES, TILES), _tiles(p_visits + HK * K + o_q, LANES, TILES)
    b_v, kq = tl.load(p_visits + o_v), tl.load(p_visits + F + key)
    decay, beta = tl.load(p_visits + F + HK + head), tl.load(p_visits + F + HK + HV + head)
    node, start, keep = tl.load(p_plan + _NODE), tl.load(p_plan + _START), tl.load(p_plan + _KEEP)
    for visit in range(0, rows):
        ahead = tl.minimum(visit + 1, rows - 1)
        p_next, p_line = p_visits + ahead.to(tl.int64) * WIDTH, p_plan + ahead * _PLAN_WIDTH
        b_next_q, b_next_k = _tiles(p_next + o_q, LANES, TILES), _tiles(p_next + HK * K + o_q, LANES, TILES)
        b_next_v, next_kq = tl.load(p_next + o_v), tl.load(p_next + F + key)
        next_decay, next_beta = tl.load(p_next + F + HK + head), tl.load(p_next + F + HK + HV + head)
        next_node, next_start = tl.load(p_line + _NODE), tl.load(p_line + _START)
        next_keep = tl.load(p_line + _KEEP)

        if start == _COMMITTED:
            b_s = _tiles(p_state + o_s, TILE, TILES)
        if start >= 0:
            b_s = _tiles(p_slots + start.to(tl.int64) * (HV * K * V) + o_s, TILE, TILES)
        # Both dot products are of the old state: S_new^T q = decay S^T q + (k^T q) correction.
        b_answer = _dot(b_s, b_q, TILES, LANES, COLUMNS)
        b_correction = _correction(b_s, b_k, b_v, decay, beta, TILES, LANES, COLUMNS)
        b_s = _update(b_s, b_k, b_correction, decay, TILES, LANES, COLUMNS)
        if keep >= 0:
            _store_tiles(p_slots + keep.to(tl.int64) * (HV * K * V) + o_s, b_s, TILE, TILES)
            tl.debug_barrier()
        tl.store(p_out + node.to(tl.int64) * (HV * V) + head * V + o_c, tl.fma(b_correction, kq, b_answer * decay))
        b_q, b_k, b_v, kq, decay, beta = b_next_q, b_next_k, b_next_v, next_kq, next_decay, next_beta
        node, start, keep = next_node, next_start, next_keep


@triton.jit
def _shifted_window(p_raw, p_window, p_path, count, o_f, F: tl.constexpr):
    """The last three of (window, path), from the tape, channels o_f."""
    for row in tl.static_range(3):
        at = count + row
        if at >= _WINDOW:
            at = tl.load(p_path + at - _WINDOW).to(tl.int32) + _WINDOW
        tl.store(p_window + row * F + o_f, tl.load(p_raw + at.to(tl.int64) * F + o_f).to(tl.float32))


@triton.jit
def _pointer(p_table, place: tl.constexpr, TYPE: tl.constexpr):
    return tl.multiple_of(tl.load(p_table + place).to(tl.pointer_type(TYPE)), 16)


@triton.jit
def _commit(
    p_table, p_path, p_count, eps, HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    LANES: tl.constexpr, COLUMNS: tl.constexpr, TAPE: tl.constexpr,
):  # fmt: skip
    """COLUMNS of one head of one layer along the path: convolution, norm of k and update as decoding does them."""
    F: tl.constexpr = 2 * HK * K + HV * V
    TILES: tl.constexpr = K // LANES
    TILE: tl.constexpr = LANES * V
    block, head, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    p_table += layer * _TABLE
    p_state, p_window = _pointer(p_table, 0, tl.float32), _pointer(p_table, 1, tl.float32)
    p_raw, p_conv = _pointer(p_table, 2, TAPE), _pointer(p_table, 5, tl.float32)
    p_decay, p_beta = _pointer(p_table, 3, tl.float32), _pointer(p_table, 4, tl.float32)
    count = tl.load(p_count).to(tl.int32)
    key = head % HK
    o_l, o_c = tl.arange(0, LANES), block * COLUMNS + tl.arange(0, COLUMNS)
    p_s = p_state + head * (K * V) + o_l[:, None] * V + o_c[None, :]
    o_k, o_v = HK * K + key * K + o_l, 2 * HK * K + head * V + o_c
    b_s = _tiles(p_s, TILE, TILES)

    b_w0, b_w1, b_w2, b_w3 = _tiles(p_conv + o_v, F, 4)
    # Rows of the tape. Their values are read anew in every step: kept, they would not fit beside the state.
    row_0, row_1, row_2 = count * 0, count * 0 + 1, count * 0 + 2
    for step in range(0, count):
        node = tl.load(p_path + step).to(tl.int32)
        row_3 = node + _WINDOW
        p_0, p_1 = p_raw + row_0.to(tl.int64) * F, p_raw + row_1.to(tl.int64) * F
        p_2, p_3 = p_raw + row_2.to(tl.int64) * F, p_raw + row_3.to(tl.int64) * F
        b_k, b_squares = (), ()
        for t in tl.static_range(TILES):
            o_t = o_k + t * LANES
            b_u0, b_u1, b_u2, b_u3 = _tiles(p_conv + o_t, F, 4)
            b_one = _convolve(
                tl.load(p_0 + o_t).to(tl.float32), tl.load(p_1 + o_t).to(tl.float32),
                tl.load(p_2 + o_t).to(tl.float32), tl.load(p_3 + o_t).to(tl.float32), b_u0, b_u1, b_u2, b_u3,
            )  # fmt: skip
            b_k = b_k + (b_one,)  # type: ignore[assignment]  # noqa: RUF005
            b_squares = b_squares + (b_one * b_one,)  # type: ignore[assignment]  # noqa: RUF005
        b_inverse = _inverse_length(_tile_halves(b_squares, TILES, LANES), eps)
        b_unit = ()
        for t in tl.static_range(TILES):
            b_unit = b_unit + (b_k[t] * b_inverse,)  # type: ignore[assignment]  # noqa: RUF005
        b_v = _convolve(
            tl.load(p_0 + o_v).to(tl.float32), tl.load(p_1 + o_v).to(tl.float32), tl.load(p_2 + o_v).to(tl.float32),
            tl.load(p_3 + o_v).to(tl.float32), b_w0, b_w1, b_w2, b_w3,
        )  # fmt: skip
        decay, beta = tl.load(p_decay + node * HV + head), tl.load(p_beta + node * HV + head)
        b_correction = _correction(b_s, b_unit, b_v, decay, beta, TILES, LANES, COLUMNS)
        b_s = _update(b_s, b_unit, b_correction, decay, TILES, LANES, COLUMNS)
        row_0, row_1, row_2 = row_1, row_2, row_3
    _store_tiles(p_s, b_s, TILE, TILES)
    # Convolutions read the tape's copy of the window, so that no program waits for another.
    _shifted_window(p_raw, p_window, p_path, count, o_v, F)
    if (head < HK) & (block == 0):
        for t in tl.static_range(TILES):
            _shifted_window(p_raw, p_window, p_path, count, o_k + t * LANES, F)
            _shifted_window(p_raw, p_window, p_path, count, o_k + t * LANES - HK * K, F)


@triton.jit
def _gated_norm(p_x, p_z, p_weight, p_out, eps, Z_STRIDE: tl.constexpr, HV: tl.constexpr, V: tl.constexpr):
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_v = tl.arange(0, V)
    o_x = row * (HV * V) + head * V + o_v
    b_x, b_z = tl.load(p_x + o_x), tl.load(p_z + row * Z_STRIDE + head * V + o_v).to(tl.float32)
    scale = tl.rsqrt(_halves(tl.reshape(b_x * b_x, (V, 1)), V, 1) / V + eps)
    b_out = b_x * scale * tl.load(p_weight + o_v) * silu(b_z)
    tl.store(p_out + o_x, b_out.to(p_out.dtype.element_ty))


@triton.jit
def _split(b_x, HALF: tl.constexpr, EMULATED: tl.constexpr):
    """A float32 as the sum of two halves; EMULATED, for the interpreter, has them as float32 again."""
    b_high = b_x.to(HALF)
    b_low = (b_x - b_high.to(tl.float32)).to(HALF)
    if EMULATED:
        b_high, b_low = b_high.to(tl.float32), b_low.to(tl.float32)
    return b_high, b_low


@triton.jit
def _product(b_x, b_y, b_sum):
    """sum + x y of two splits on matrix cores; what is left out is 2**-22 of it for float16, 2**-16 for bfloat16."""
    b_sum = tl.dot(b_x[1], b_y[0], b_sum, input_precision="ieee")
    b_sum = tl.dot(b_x[0], b_y[0], b_sum, input_precision="ieee")
    return tl.dot(b_x[0], b_y[1], b_sum, input_precision="ieee")


@triton.jit
def _rows_mixed(
    p_raw, p_window, p_conv, o_t, o_f, RAW_STRIDE: tl.constexpr, F: tl.constexpr, TAPE: tl.constexpr,
):  # fmt: skip
    """Rows o_t of a pass and channels o_f after convolution and SiLU."""
    b_sum = tl.zeros((o_t.shape[0], o_f.shape[0]), tl.float32)
    for tap in tl.static_range(4):
        row = o_t[:, None] + (tap - 3)
        b_x = tl.load(p_raw + row.to(tl.int64) * RAW_STRIDE + o_f[None, :], mask=row >= 0, other=0.0)
        b_old = tl.load(p_window + (row + _WINDOW) * F + o_f[None, :], mask=row < 0, other=0.0)
        b_x = tl.where(row >= 0, b_x.to(TAPE).to(tl.float32), b_old)
        b_sum += b_x * tl.load(p_conv + tap * F + o_f)[None, :]
    return silu(b_sum)


@triton.jit(do_not_specialize=["count"])
def _prefill_heads(
    p_raw, p_window, p_conv, p_q, p_k, p_v, count, eps, scale, RAW_STRIDE: tl.constexpr, HK: tl.constexpr,
    HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr, TAPE: tl.constexpr,
):  # fmt: skip
    """q and k of one key head, or v of one value head, for ROWS rows; zeros behind the prompt's end."""
    F: tl.constexpr = 2 * HK * K + HV * V
    head = tl.program_id(1)
    o_t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_live = (o_t < count)[:, None]
    if head < HK:
        o_k = head * K + tl.arange(0, K)
        o_out = o_t[:, None].to(tl.int64) * (HK * K) + o_k[None, :]
        b_q = _rows_mixed(p_raw, p_window, p_conv, o_t, o_k, RAW_STRIDE, F, TAPE)
        b_q = b_q * (_inverse_length(tl.sum(b_q * b_q, 1), eps) * scale)[:, None]
        tl.store(p_q + o_out, tl.where(m_live, b_q, 0.0))
        b_k = _rows_mixed(p_raw, p_window, p_conv, o_t, HK * K + o_k, RAW_STRIDE, F, TAPE)
        b_k = b_k * _inverse_length(tl.sum(b_k * b_k, 1), eps)[:, None]
        tl.store(p_k + o_out, tl.where(m_live, b_k, 0.0))
    else:
        o_v = (head - HK) * V + tl.arange(0, V)
        b_v = _rows_mixed(p_raw, p_window, p_conv, o_t, 2 * HK * K + o_v, RAW_STRIDE, F, TAPE)
        tl.store(p_v + o_t[:, None].to(tl.int64) * (HV * V) + o_v[None, :], tl.where(m_live, b_v, 0.0))


@triton.jit
def _unit_inverse(b_a, C: tl.constexpr, EMULATED: tl.constexpr):
    """(I + a)^-1 of a strictly lower a [C, C] by blocks: the inverse of twice the size from those of half the size.

    With T of the blocks of the diagonal and A of what couples two neighbours, T - T A T is of the pairs of blocks.
    """
    o_c = tl.arange(0, C)
    o_i, o_j = o_c[:, None], o_c[None, :]
    b_t = tl.where(o_i == o_j, 1.0, 0.0) - tl.where((o_i % 2 == 1) & (o_j == o_i - 1), b_a, 0.0)
    for level in range(1, 6):
        m_pair = ((o_i >> level) % 2 == 1) & ((o_j >> level) == (o_i >> level) - 1)
        b_split = _split(b_t, tl.float16, EMULATED)
        b_pair = _split(tl.where(m_pair, -b_a, 0.0), tl.float16, EMULATED)
        b_left = _product(b_split, b_pair, tl.zeros((C, C), tl.float32))
        b_t = _product(_split(b_left, tl.float16, EMULATED), b_split, b_t)
    return b_t


@triton.jit(do_not_specialize=["count"])
def _granule(
    p_q, p_k, p_v, p_a, p_b, p_rate, p_bias, p_u, p_w, p_scores, p_total, count, A_STRIDE: tl.constexpr,
    B_STRIDE: tl.constexpr, HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    KEYS: tl.constexpr, VALUES: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Of one granule and head what needs no state: u, w, the scores and the running sum of g.

    q and k are unit vectors, and what is solved for is as small: halves are float16, but for v, whose size is unknown.
    """
    granule, head = tl.program_id(1), tl.program_id(0)
    key = head % HK
    o_c = tl.arange(0, C)
    o_i, o_j = o_c[:, None], o_c[None, :]
    first = tl.cast(granule, tl.int64) * C
    m_live = granule * C + o_c < count
    a = tl.load(p_a + (first * A_STRIDE + head) + o_c * A_STRIDE, mask=m_live, other=0.0)
    b = tl.load(p_b + (first * B_STRIDE + head) + o_c * B_STRIDE, mask=m_live, other=0.0)
    b_g = tl.where(m_live, _log_decay(a, tl.load(p_bias + head), tl.load(p_rate + head)), 0.0)
    b_beta = tl.where(m_live, _sigmoid(b), 0.0)
    b_total = tl.cumsum(b_g, 0)
    square = tl.cast(granule, tl.int64) * HV + head
    tl.store(p_total + square * C + o_c, b_total)
    b_ratio = tl.where(o_i >= o_j, tl.exp(tl.where(o_i >= o_j, b_total[:, None] - b_total[None, :], 0.0)), 0.0)

    p_q += first * (HK * K) + key * K
    p_k += first * (HK * K) + key * K
    o_key = o_i * (HK * K) + tl.arange(0, KEYS)[None, :]
    b_scores, b_a = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
    for at in range(0, K, KEYS):
        b_k = _split(tl.load(p_k + at + o_key), tl.float16, EMULATED)
        b_k_t = tl.trans(b_k[0]), tl.trans(b_k[1])
        b_scores = _product(_split(tl.load(p_q + at + o_key), tl.float16, EMULATED), b_k_t, b_scores)
        b_a = _product(b_k, b_k_t, b_a)
    tl.store(p_scores + square * (C * C) + (o_i * C + o_j), b_scores * b_ratio)
    b_a = tl.where(o_i > o_j, b_beta[:, None] * b_a * b_ratio, 0.0)
    b_inverse = _unit_inverse(b_a, C, EMULATED)
    b_split = _split(b_inverse, tl.float16, EMULATED)
    b_rate = b_beta * tl.exp(b_total)
    p_w += first * (HV * K) + head * K
    o_w = o_i * (HV * K) + tl.arange(0, KEYS)[None, :]
    for at in range(0, K, KEYS):
        b_k = _split(tl.load(p_k + at + o_key) * b_rate[:, None], tl.float16, EMULATED)
        tl.store(p_w + at + o_w, _product(b_split, b_k, tl.zeros((C, KEYS), tl.float32)))
    b_split = _split(b_inverse, tl.bfloat16, EMULATED)
    value = first * (HV * V) + head * V
    o_value = o_i * (HV * V) + tl.arange(0, VALUES)[None, :]
    for at in range(0, V, VALUES):
        b_v = _split(tl.load(p_v + value + at + o_value) * b_beta[:, None], tl.bfloat16, EMULATED)
        tl.store(p_u + value + at + o_value, _product(b_split, b_v, tl.zeros((C, VALUES), tl.float32)))


@triton.jit
def _new_window(p_raw, p_window, count, o_f, RAW_STRIDE: tl.constexpr, F: tl.constexpr, TAPE: tl.constexpr):
    """The last three of (window, the `count` rows), channels o_f."""
    b_0 = _tap(p_raw, p_window, count, o_f, RAW_STRIDE, F, TAPE)
    b_1 = _tap(p_raw, p_window, count + 1, o_f, RAW_STRIDE, F, TAPE)
    b_2 = _tap(p_raw, p_window, count + 2, o_f, RAW_STRIDE, F, TAPE)
    tl.debug_barrier()  # Where rows move up, all are read before one is written.
    tl.store(p_window + o_f, b_0)
    tl.store(p_window + F + o_f, b_1)
    tl.store(p_window + 2 * F + o_f, b_2)


@triton.jit(do_not_specialize=["granules", "count"])
def _pass(
    p_raw, p_q, p_k, p_u, p_w, p_scores, p_total, p_state, p_window, p_out, granules, count, RAW_STRIDE: tl.constexpr,
    HK: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, COLUMNS: tl.constexpr,
    KEYS: tl.constexpr, TAPE: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """COLUMNS of one head through all granules of a pass, in order; then its channels of the window."""
    F: tl.constexpr = 2 * HK * K + HV * V
    block, head = tl.program_id(0), tl.program_id(1)
    key = head % HK
    TILES: tl.constexpr = K // KEYS
    o_c, o_k, o_v = tl.arange(0, C), tl.arange(0, KEYS), block * COLUMNS + tl.arange(0, COLUMNS)
    p_s = p_state + head * (K * V) + o_k[:, None] * V + o_v[None, :]
    o_value = o_c[:, None] * (HV * V) + o_v[None, :]
    b_s = _tiles(p_s, KEYS * V, TILES)
    for granule in range(0, granules):
        first = tl.cast(granule, tl.int64) * C
        square = tl.cast(granule, tl.int64) * HV + head
        p_sum = p_total + square * C
        b_total, last = tl.load(p_sum + o_c), tl.load(p_sum + (C - 1))
        value = first * (HV * V) + head * V
        p_from_w = p_w + (first * (HV * K) + head * K) + (o_c[:, None] * (HV * K) + o_k[None, :])
        p_from_q = p_q + (first * (HK * K) + key * K) + (o_c[:, None] * (HK * K) + o_k[None, :])
        p_from_k = p_k + (first * (HK * K) + key * K) + (o_c[None, :] * (HK * K) + o_k[:, None])
        b_known, b_out = tl.zeros((C, COLUMNS), tl.float32), tl.zeros((C, COLUMNS), tl.float32)
        for t in tl.static_range(TILES):
            b_tile = _split(b_s[t], tl.bfloat16, EMULATED)
            b_known = _product(_split(tl.load(p_from_w + t * KEYS), tl.bfloat16, EMULATED), b_tile, b_known)
            b_out = _product(_split(tl.load(p_from_q + t * KEYS), tl.bfloat16, EMULATED), b_tile, b_out)
        b_correction = _split(tl.load(p_u + value + o_value) - b_known, tl.bfloat16, EMULATED)
        b_scores = tl.load(p_scores + square * (C * C) + (o_c[:, None] * C + o_c[None, :]))
        b_out = _product(_split(b_scores, tl.bfloat16, EMULATED), b_correction, tl.exp(b_total)[:, None] * b_out)
        tl.store(p_out + value + o_value, b_out)
        b_new = ()
        for t in tl.static_range(TILES):
            b_k = tl.load(p_from_k + t * KEYS) * tl.exp(last - b_total)[None, :]
            b_one = _product(_split(b_k, tl.bfloat16, EMULATED), b_correction, tl.exp(last) * b_s[t])
            b_new = b_new + (b_one,)  # type: ignore[assignment]  # noqa: RUF005
        b_s = b_new
    _store_tiles(p_s, b_s, KEYS * V, TILES)
    _new_window(p_raw, p_window, count, 2 * HK * K + head * V + o_v, RAW_STRIDE, F, TAPE)
    if (head < HK) & (block == 0):
        for t in tl.static_range(2 * TILES):
            o_f = t // TILES * (HK * K) + head * K + t % TILES * KEYS + o_k
            _new_window(p_raw, p_window, count, o_f, RAW_STRIDE, F, TAPE)


_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def require_shape(shape: DeltaShape) -> None:
    """ValueError for head widths that the kernels do not take."""
    for width in (shape.key_dim, shape.value_dim):
        require(width >= LANES and width & (width - 1) == 0 and width <= 256, f"a head is 16 to 256 wide, not {width}")
    require(shape.value_heads % shape.key_heads == 0, "value heads are a multiple of key heads")


def _sizes(shape: DeltaShape) -> dict[str, int]:
    return {"HK": shape.key_heads, "HV": shape.value_heads, "K": shape.key_dim, "V": shape.value_dim}


def tiling_of(device: torch.device) -> Tiling:
    """The device's tiling."""
    return AMD if device.type == "cuda" and torch.version.hip else NVIDIA


@contextmanager
def without_wgmma() -> Iterator[None]:
    """Kernels that are compiled meanwhile multiply by mma.sync on a Hopper too.

    Triton 3.6 takes wgmma for these shapes, with left operands in registers, and on an H200 u, w and the state came out
    wrong with four warps. It asks the environment alone, when it compiles.
    """
    before = os.environ.get(_NO_WGMMA)
    os.environ[_NO_WGMMA] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_WGMMA]
        else:
            os.environ[_NO_WGMMA] = before


def pass_warps(tiling: Tiling, values: int) -> int:
    """Warps of a program that goes through a pass with `values` columns."""
    return min(tiling.pass_warps, values // 4)


def plan_tree(parents: Tensor, order: Tensor) -> Tensor:
    """See `draftwood.kernels.delta_rule.DeviceForm`."""
    rows = len(parents)
    require(1 <= rows <= MAX_ROWS and len(order) == rows, f"a tree has 1 to {MAX_ROWS} nodes, all of them in its order")
    plan = torch.empty(rows, PLAN_WIDTH, dtype=torch.int32, device=parents.device)
    _plan[(1,)](parents, order, plan, rows, BLOCK=MAX_ROWS, num_warps=4)
    return plan


def stage_nodes(raw: Tensor, a: Tensor, b: Tensor, plan: Tensor, layer: DeltaLayer, shape: DeltaShape) -> Tensor:
    """See `draftwood.kernels.delta_rule.DeviceForm`."""
    require_shape(shape)
    rows = len(plan)
    require(raw.shape == (rows, shape.channels), f"raw is [{rows}, {shape.channels}], not {tuple(raw.shape)}")
    require(a.shape == b.shape == (rows, shape.value_heads), f"gates are [{rows}, {shape.value_heads}]")
    require(len(layer.raw) >= rows + TAPS - 1 and len(layer.decay) >= rows, f"the tape is shorter than {rows} nodes")
    raw, a, b = aligned(raw), aligned(a), aligned(b)
    width = visit_width(shape.key_heads, shape.value_heads, shape.key_dim, shape.value_dim)
    visits = torch.empty(rows, width, dtype=torch.float32, device=raw.device)
    _stage[(shape.key_heads + shape.value_heads, rows)](
        raw, a, b, layer.window, layer.conv, layer.rate, layer.bias, plan, layer.raw, layer.decay, layer.beta, visits,
        shape.eps, shape.key_dim**-0.5, RAW_STRIDE=row_stride(raw), A_STRIDE=row_stride(a), B_STRIDE=row_stride(b),
        **_sizes(shape), **EXACT,
    )  # fmt: skip
    return visits


def tree_rule(visits: Tensor, plan: Tensor, state: Tensor, slots: Tensor, shape: DeltaShape) -> Tensor:
    """See `draftwood.kernels.delta_rule.DeviceForm`."""
    rows, (heads, value_dim) = len(plan), (shape.value_heads, shape.value_dim)
    require(len(visits) == rows, f"{rows} visits are planned, {len(visits)} staged")
    need = slot_shape(rows, heads, shape.key_dim, value_dim)
    require(slots.shape[1:] == need[1:] and len(slots) >= need[0], f"slots are {need}, not {tuple(slots.shape)}")
    out = torch.empty(rows, heads, value_dim, dtype=torch.float32, device=visits.device)
    _tree_rule[(value_dim // COLUMNS, heads)](
        visits, state, plan, slots, out, rows, **_sizes(shape), LANES=LANES, COLUMNS=COLUMNS, **EXACT
    )
    return out


def gated_norm(x: Tensor, z: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """See `draftwood.kernels.delta_rule.DeviceForm`."""
    rows, heads, width = x.shape
    require(z.shape == (rows, heads * width), f"z is [{rows}, {heads * width}], not {tuple(z.shape)}")
    require(weight.shape == (width,), f"a norm of heads of {width} needs as many weights, not {tuple(weight.shape)}")
    z = aligned(z)
    out = torch.empty(rows, heads * width, dtype=out_dtype, device=x.device)
    _gated_norm[(heads, rows)](
        aligned(x), z, aligned(weight), out, eps, Z_STRIDE=row_stride(z), HV=heads, V=width, **EXACT
    )
    return out


def layer_table(layers: Iterable[DeltaLayer]) -> Tensor:
    """See `draftwood.kernels.delta_rule.DeviceForm`."""
    rows = []
    for layer in layers:
        tensors = (layer.state, layer.window, layer.raw, layer.decay, layer.beta, layer.conv)
        for tensor in tensors:
            require(tensor.is_contiguous() and is_aligned(tensor), "a layer's tensors are contiguous, on 16 bytes")
        rows.append([tensor.data_ptr() for tensor in tensors])
    require(len(rows) > 0, "no layers")
    return torch.tensor(rows, dtype=torch.int64, device=layer.state.device)


def commit_nodes(table: Tensor, path: Tensor, count: Tensor, shape: DeltaShape, tape: torch.dtype) -> None:
    """See `draftwood.kernels.delta_rule.DeviceForm`."""
    require_shape(shape)
    columns = tiling_of(table.device).commit
    _commit[(shape.value_dim // columns, shape.value_heads, len(table))](
        table, path, count, shape.eps, **_sizes(shape), LANES=LANES, COLUMNS=columns, TAPE=_DTYPES[tape], **EXACT
    )


def prefill(raw: Tensor, a: Tensor, b: Tensor, layer: DeltaLayer, shape: DeltaShape, count: int) -> Tensor:
    """See `draftwood.kernels.delta_rule.DeviceForm`."""
    require_shape(shape)
    (tokens, channels), heads, device = raw.shape, shape.value_heads, raw.device
    require(tokens % GRANULE == 0 and 0 <= count <= tokens, f"{count} rows in a pass of {tokens}, no multiple of 64")
    require(channels == shape.channels, f"raw is [{tokens}, {shape.channels}], not {tuple(raw.shape)}")
    require(a.shape == b.shape == (tokens, heads), f"gates are [{tokens}, {heads}]")
    raw, a, b = aligned(raw), aligned(a), aligned(b)
    sizes = _sizes(shape)
    shapes = chunk_shapes(tokens, shape.key_heads, heads, shape.key_dim, shape.value_dim)
    q, k, v, u, w, scores, total = (torch.empty(*size, device=device) for size in shapes.values())
    out = torch.empty(tokens, heads, shape.value_dim, device=device)
    tape, emulated = _DTYPES[layer.raw.dtype], device.type != "cuda"
    _prefill_heads[(tokens // PREFILL_ROWS, shape.key_heads + heads)](
        raw, layer.window, layer.conv, q, k, v, count, shape.eps, shape.key_dim**-0.5, RAW_STRIDE=row_stride(raw),
        **sizes, ROWS=PREFILL_ROWS, TAPE=tape, num_warps=4,
    )  # fmt: skip
    granules, tiling = tokens // GRANULE, tiling_of(device)
    keys, values = min(tiling.keys, shape.key_dim), min(tiling.columns, shape.value_dim)
    with without_wgmma():
        _granule[(heads, granules)](
            q, k, v, a, b, layer.rate, layer.bias, u, w, scores, total, count, A_STRIDE=row_stride(a),
            B_STRIDE=row_stride(b), **sizes, C=GRANULE, KEYS=keys, VALUES=min(_VALUES, shape.value_dim),
            EMULATED=emulated, num_warps=tiling.granule_warps, num_stages=1,
        )  # fmt: skip
        _pass[(shape.value_dim // values, heads)](
            raw, q, k, u, w, scores, total, layer.state, layer.window, out, granules, count, RAW_STRIDE=row_stride(raw),
            **sizes, C=GRANULE, COLUMNS=values, KEYS=keys, TAPE=tape, EMULATED=emulated,
            num_warps=pass_warps(tiling, values), num_stages=1,
        )  # fmt: skip
    return out
