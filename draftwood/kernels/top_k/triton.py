"""Top-k without a sort, in two launches (README.md has the argument).

The first reads the logits once and keeps, of every group of neighbours, the maximum and the sum of exponentials. The
k largest logits lie in the k groups with the largest maxima; the second finds those and searches them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.kernels._rows import aligned, require, row_stride

GROUP = 128
"""Logits of a group."""

GROUPS = 32
"""Groups of a program of the first launch."""

MOST = 8
"""The largest k."""


@triton.jit
def _ranked(x, number):
    """One int64 a value that sorts by value, the lower number first among equals."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # + 0.0 makes one zero of the two
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (order.to(tl.int64) << 32) | (0xFFFFFFFF - number.to(tl.int64))


@triton.jit
def _number(rank):
    return 0xFFFFFFFF - (rank & 0xFFFFFFFF)


@triton.jit
def _value(rank):
    order = (rank >> 32).to(tl.int32)
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _finite(peak):
    """What to take off before exponentials: the maximum, unless it is infinite."""
    return tl.where(tl.abs(peak) == float("inf"), 0.0, peak)


@triton.jit
def _groups(
    p_logits, p_peak, p_sum, inverse, STRIDE: tl.constexpr, V: tl.constexpr, COUNT: tl.constexpr, GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    o_g = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    o_v = o_g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    b_x = tl.load(p_logits + row * STRIDE + o_v, mask=o_v < V, other=-float("inf")).to(tl.float32)
    b_peak = tl.max(b_x, 1)
    b_sum = tl.sum(tl.exp((b_x - _finite(b_peak)[:, None]) * inverse), 1)
    tl.store(p_peak + row * COUNT + o_g, b_peak, mask=o_g < COUNT)
    tl.store(p_sum + row * COUNT + o_g, b_sum, mask=o_g < COUNT)


@triton.jit
def _search(
    p_logits, p_peak, p_sum, p_value, p_id, p_lse, inverse, STRIDE: tl.constexpr, V: tl.constexpr, K: tl.constexpr,
    COUNT: tl.constexpr, BLOCK: tl.constexpr, CHOSEN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    lowest: tl.constexpr = -(1 << 63)
    row = tl.program_id(0).to(tl.int64)
    o_g = tl.arange(0, BLOCK)
    m_g = o_g < COUNT
    b_peak = tl.load(p_peak + row * COUNT + o_g, mask=m_g, other=-float("inf"))
    b_sum = tl.load(p_sum + row * COUNT + o_g, mask=m_g, other=0.0)
    top = _finite(tl.max(b_peak, 0))
    total = tl.sum(b_sum * tl.exp((b_peak - top) * inverse), 0)
    tl.store(p_lse + row, top * inverse + tl.log(total))

    o_k = tl.arange(0, CHOSEN)
    b_chosen = tl.full([CHOSEN], V, tl.int64)
    b_rank = tl.where(m_g, _ranked(b_peak, o_g), lowest)
    for place in tl.static_range(K):
        best = tl.max(b_rank, 0)
        b_chosen = tl.where(o_k == place, _number(best), b_chosen)
        b_rank = tl.where(b_rank == best, lowest, b_rank)
    o_v = b_chosen[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    m_v = o_v < V
    b_x = tl.load(p_logits + row * STRIDE + o_v, mask=m_v, other=0.0).to(tl.float32)
    b_rank = tl.reshape(tl.where(m_v, _ranked(b_x, o_v), lowest), [CHOSEN * GROUP])
    for place in tl.static_range(K):
        best = tl.max(b_rank, 0)
        tl.store(p_value + row * K + place, _value(best) * inverse)
        tl.store(p_id + row * K + place, _number(best))
        b_rank = tl.where(b_rank == best, lowest, b_rank)


def top_k(logits: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """See `draftwood.kernels.top_k.load_top_k`."""
    rows, columns = logits.shape
    require(1 <= k <= min(MOST, columns), f"k is 1 to {min(MOST, columns)} for rows of {columns}, not {k}")
    logits, device = aligned(logits), logits.device
    stride, count, inverse = row_stride(logits), triton.cdiv(columns, GROUP), 1.0 / temperature
    peaks, sums = (torch.empty(rows, count, device=device) for _ in range(2))
    values, lse = torch.empty(rows, k, device=device), torch.empty(rows, device=device)
    ids = torch.empty(rows, k, dtype=torch.int64, device=device)
    _groups[(triton.cdiv(count, GROUPS), rows)](
        logits, peaks, sums, inverse, STRIDE=stride, V=columns, COUNT=count, GROUPS=GROUPS, GROUP=GROUP, num_warps=4
    )
    _search[(rows,)](
        logits, peaks, sums, values, ids, lse, inverse, STRIDE=stride, V=columns, K=k, COUNT=count,
        BLOCK=triton.next_power_of_2(count), CHOSEN=triton.next_power_of_2(k), GROUP=GROUP, num_warps=4,
    )  # fmt: skip
    return values, ids, lse
