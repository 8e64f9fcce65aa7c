"""Draft trees in one launch each for growing and walking, by one program of one warp (README.md has the argument)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.kernels._rows import aligned, require
from draftwood.kernels.draft_tree import CAPACITY, HEADER, TURN, Assumed, Grown, Growth, Walked

MOST_CANDIDATES = 64
"""Ranks whose keys still fit a warp's registers."""

LANES = 32
"""Nodes at least: a warp's lanes, over which integers are reduced by one instruction."""

_NEVER = tl.constexpr(0x7F800000)
"""Key of a candidate that cannot be chosen: the bits of infinity."""


@triton.jit
def _children(b_table, o_d, depth, score, lowest):
    """Keys int32 [K] of the children of a node at `depth`: the bits of minus the score, which rise as scores fall."""
    b_score = score + tl.max(tl.where(o_d[:, None] == depth, b_table, -float("inf")), 0)
    return tl.where(b_score >= lowest, tl.abs(b_score).to(tl.int32, bitcast=True), _NEVER)


@triton.jit
def _at(b_x, o_n, place):
    """The element at `place`."""
    return tl.sum(tl.where(o_n == place, b_x, 0), 0)


# Were the stride known, lanes would load four numbers at a time, and the keys change layout in every turn.
@triton.jit(do_not_specialize=["value_stride"])
def _grow(
    p_pending, p_candidate, p_value, p_normaliser, p_committed, p_token, p_parent, p_depth, p_count, p_expected,
    p_position, p_ancestor, p_order, lowest, value_stride, TOKEN_STRIDE: tl.constexpr, DEPTHS: tl.constexpr,
    WIDTH: tl.constexpr, BUDGET: tl.constexpr, SEED: tl.constexpr, CAPACITY: tl.constexpr, N: tl.constexpr,
    D: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    o_n, o_d, o_k = tl.arange(0, N), tl.arange(0, D), tl.arange(0, K)
    m_value = (o_d < DEPTHS)[:, None] & (o_k < WIDTH)[None, :]
    b_table = tl.load(p_value + o_d[:, None] * value_stride + o_k[None, :], mask=m_value, other=-float("inf"))
    if p_normaliser is not None:
        b_table -= tl.load(p_normaliser + o_d, mask=o_d < DEPTHS, other=0.0)[:, None]
    b_table = tl.where(b_table == b_table, tl.minimum(b_table, 0.0), -float("inf"))

    # Row i: the children of node i that are not taken. Nodes count up as they are chosen.
    b_key = tl.where((o_n == 0)[:, None], _children(b_table, o_d, 0, 0.0, lowest)[None, :], _NEVER)
    b_tie = (N + o_n)[:, None] * K + o_k[None, :]
    b_depth, b_rank, b_score = tl.where(o_n == 0, 0, -1), tl.zeros([N], tl.int32), tl.zeros([N], tl.float32)
    # Where a node will be by depth and score, and which places its subtree takes depth first.
    b_place, b_start, b_end = o_n, o_n, tl.where(o_n == 0, 1, 0)
    count, more = tl.full([], 1, tl.int32), tl.full([], 1, tl.int32)
    spine = tl.full([], 1 if SEED > 0 else 0, tl.int32)
    while (more > 0) & (count <= BUDGET):
        b_open = tl.where((o_n >= (count - 1) * spine)[:, None], b_key, _NEVER)
        key = tl.min(b_open)
        tie = tl.min(tl.where(b_open == key, b_tie, 0x7FFFFFFF))
        found = (key < _NEVER).to(tl.int32)
        rank, parent, depth = tie % K, tie // K % N, tie // (N * K)
        score = -key.to(tl.float32, bitcast=True)

        m_new = (o_n == count) & (found > 0)
        # Where a chain has ended, the least tie is not one that was taken.
        b_key = tl.where(b_tie == tl.where(found > 0, tie, -1), _NEVER, b_key)
        b_key = tl.where(m_new[:, None], _children(b_table, o_d, depth, score, lowest)[None, :], b_key)
        b_tie = tl.where(m_new[:, None], (((depth + 1) * N + count) * K + o_k)[None, :], b_tie)

        m_old = (o_n < count) & (found > 0)
        around = _at(b_start + (b_end << 7), o_n, parent)
        start, end = around & 127, around >> 7
        m_after = b_start >= end
        m_longer = m_after | ((b_start <= start) & (b_end >= end))
        b_end = tl.where(m_new, end + 1, b_end + (m_old & m_longer).to(tl.int32))
        b_start = tl.where(m_new, end, b_start + (m_old & m_after).to(tl.int32))
        m_before = m_old & (b_depth <= depth)
        place = tl.sum(m_before.to(tl.int32), 0)
        b_place = tl.where(m_new, place, b_place + (m_old & (b_depth > depth)).to(tl.int32))
        b_depth, b_rank = tl.where(m_new, depth, b_depth), tl.where(m_new, rank, b_rank)
        b_score = tl.where(m_new, score, b_score)
        # A chain that ends early leaves its share of the budget to all.
        more = found | spine
        spine = spine * found * (count < SEED).to(tl.int32)
        count += found

    m_node = (o_n > 0) & (o_n < count)
    tl.store(p_count, count.to(tl.int64))
    tl.store(p_expected, tl.sum(tl.where(m_node, tl.exp(b_score), 0.0).to(tl.float64), 0))
    b_token = tl.load(p_candidate + (b_depth - 1) * TOKEN_STRIDE + b_rank, mask=m_node, other=0)
    tl.store(p_token + b_place, tl.where(o_n == 0, tl.load(p_pending), b_token))
    b_edges, committed = tl.maximum(b_depth, 0).to(tl.int64), tl.load(p_committed)
    tl.store(p_depth + b_place, b_edges)
    tl.store(p_position + b_place, committed + b_edges)
    tl.store(p_order + b_start, b_place)

    # A node is on the paths of all in its subtree. Unused slots have an empty one.
    o_c = tl.arange(0, CAPACITY)
    b_parent = tl.full([N], -1, tl.int32)
    b_packed = b_start + (b_end << 7) + (b_place << 14) + (b_depth << 21)
    for node in range(0, count):
        packed = _at(b_packed, o_n, node)
        start, end, place, depth = packed & 127, (packed >> 7) & 127, (packed >> 14) & 127, packed >> 21
        m_below = (b_start >= start) & (b_start < end)
        tl.store(p_ancestor + b_place * CAPACITY + depth, tl.zeros([N], tl.int32) + place, mask=m_below)
        tl.store(p_ancestor + place * CAPACITY + o_c, tl.full([CAPACITY], -1, tl.int32), mask=o_c > depth)
        b_parent = tl.where(m_below & (b_depth == depth + 1), place, b_parent)
    for slot in range(count, CAPACITY):
        tl.store(p_ancestor + slot * CAPACITY + o_c, tl.full([CAPACITY], -1, tl.int32))
    tl.store(p_parent + b_place, b_parent.to(tl.int64))
    if N < CAPACITY:
        m_rest = o_c >= N
        b_none = tl.zeros([CAPACITY], tl.int64)
        tl.store(p_token + o_c, b_none, mask=m_rest)
        tl.store(p_depth + o_c, b_none, mask=m_rest)
        tl.store(p_position + o_c, committed + b_none, mask=m_rest)
        tl.store(p_parent + o_c, b_none - 1, mask=m_rest)
        tl.store(p_order + o_c, o_c, mask=m_rest)


def grow(
    pending: Tensor,
    tokens: Tensor,
    log_probs: Tensor,
    committed: Tensor,
    growth: Growth,
    normaliser: Tensor | None = None,
) -> Grown:
    """See `draftwood.kernels.draft_tree.load_grow`."""
    require(1 <= growth.budget < CAPACITY, f"the budget is 1 to {CAPACITY - 1}, not {growth.budget}")
    depths, width = min(tokens.shape[0], growth.depth), min(tokens.shape[1], growth.candidates)
    require(width <= MOST_CANDIDATES, f"a depth has at most {MOST_CANDIDATES} candidates, not {width}")
    depths = min(depths, growth.budget) if width else 0
    budget = min(growth.budget, depths) if width == 1 else growth.budget
    normaliser = None if normaliser is None else aligned(normaliser)
    tokens, log_probs, device = aligned(tokens), aligned(log_probs), tokens.device
    columns = torch.empty(4, CAPACITY, dtype=torch.int64, device=device)
    paths = torch.empty(CAPACITY + 1, CAPACITY, dtype=torch.int32, device=device)
    grown = Grown(
        tokens=columns[0],
        parents=columns[1],
        depth=columns[2],
        count=torch.empty((), dtype=torch.int64, device=device),
        expected=torch.empty((), dtype=torch.float64, device=device),
        positions=columns[3],
        ancestors=paths[:CAPACITY],
        order=paths[CAPACITY],
    )
    _grow[(1,)](
        pending, tokens, log_probs, normaliser, committed, grown.tokens, grown.parents, grown.depth, grown.count,
        grown.expected, grown.positions, grown.ancestors, grown.order, growth.lowest, log_probs.stride(0),
        TOKEN_STRIDE=tokens.stride(0), DEPTHS=depths, WIDTH=width, BUDGET=budget, SEED=min(growth.seed, depths),
        CAPACITY=CAPACITY, N=max(LANES, triton.next_power_of_2(budget + 1)), D=triton.next_power_of_2(max(depths, 1)),
        K=triton.next_power_of_2(max(width, 1)), num_warps=1,
    )  # fmt: skip
    return grown


@triton.jit
def _walk(
    p_token, p_parent, p_depth, p_count, p_target, p_committed, p_pending, p_text, p_mean, p_counter, p_path, p_row,
    CAPACITY: tl.constexpr, HEADER: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    # One warp: what is changed in place is read by all of it before.
    o_n = tl.arange(0, CAPACITY)
    count, committed = tl.load(p_count), tl.load(p_committed)
    m_used = o_n < count
    b_token = tl.load(p_token + o_n)
    b_parent = tl.where(m_used, tl.load(p_parent + o_n), -1).to(tl.int32)
    deepest = tl.max(tl.where(m_used, tl.load(p_depth + o_n), 0).to(tl.int32), 0)
    at_most = CAPACITY
    if p_mean is not None:
        counter, mean = tl.load(p_counter), tl.load(p_mean)
        tl.store(p_counter, counter + 1)
        whole = mean.to(tl.int32)
        step = ((mean - whole.to(tl.float64)) * TURN).to(tl.int64)
        place = ((counter & (TURN - 1)) * step + TURN // 2) & (TURN - 1)
        at_most = whole + (place + step >= TURN).to(tl.int32)

    b_path = tl.where(o_n == 0, 0, -1)
    steps, more = tl.full([], 1, tl.int32), tl.full([], 1, tl.int32)
    node = tl.full([], 0, tl.int32)
    following = tl.load(p_target)
    while (more > 0) & (steps < at_most):
        m_child = b_parent == node
        if p_mean is None:
            m_child &= b_token == following
        child = tl.min(tl.where(m_child, o_n, CAPACITY), 0)
        more = (child < CAPACITY).to(tl.int32)
        node = tl.where(more > 0, child, node)
        b_path = tl.where((o_n == steps) & (more > 0), node, b_path)
        following = tl.load(p_target + node)
        steps += more

    m_path = o_n < steps
    b_kept = tl.load(p_token + b_path, mask=m_path, other=-1)
    tl.store(p_path + o_n, b_path.to(tl.int64))
    tl.store(p_text + committed + o_n, b_kept, mask=m_path)
    tl.store(p_row + HEADER + o_n, b_kept)
    tl.store(p_row, steps.to(tl.int64))
    tl.store(p_row + 1, deepest.to(tl.int64))
    tl.store(p_row + 2, following)
    tl.store(p_row + 3, count)
    tl.store(p_committed, committed + steps)
    tl.store(p_pending, following)


def walk(
    tokens: Tensor,
    parents: Tensor,
    depth: Tensor,
    count: Tensor,
    target: Tensor,
    committed: Tensor,
    pending: Tensor,
    text: Tensor,
    assumed: Assumed | None = None,
) -> Walked:
    """See `draftwood.kernels.draft_tree.load_walk`."""
    path, row = torch.empty(2 * CAPACITY + HEADER, dtype=torch.int64, device=tokens.device).split(
        [CAPACITY, CAPACITY + HEADER]
    )
    mean, counter = (None, None) if assumed is None else (assumed.mean, assumed.counter)
    _walk[(1,)](
        tokens, parents, depth, count, target, committed, pending, text, mean, counter, path, row, CAPACITY=CAPACITY,
        HEADER=HEADER, TURN=TURN, num_warps=1,
    )  # fmt: skip
    return Walked(path, row[0], row[2], row[HEADER:], row)
