"""One new row of each of many sequences against its own cache: a program per sequence and KV head.

The grid fills a device as soon as there are a few hundred sequences, so the keys are not split. Each program stops
at its own sequence's length: the bytes read are those of the live rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KEYS = 64
"""Keys of one step of a program."""


@triton.jit
def _attend_rows(
    p_q, p_k, p_v, p_length, p_out, scale, S: tl.constexpr, H: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    group: tl.constexpr = H // G
    o_q, o_d, o_s = tl.arange(0, QUERIES), tl.arange(0, D), tl.arange(0, KEYS)
    m_q = o_q < group
    query = (row.to(tl.int64) * H + head * group + o_q)[:, None] * D + o_d[None, :]
    b_q = tl.load(p_q + query, mask=m_q[:, None], other=0.0)
    base = (row.to(tl.int64) * G + head) * S * D
    length = tl.load(p_length + row)
    top = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, D], tl.float32)
    for first in range(0, length, KEYS):
        m_s = first + o_s < length
        place = base + (first + o_s)[:, None] * D + o_d[None, :]
        b_k = tl.load(p_k + place, mask=m_s[:, None], other=0.0)
        b_v = tl.load(p_v + place, mask=m_s[:, None], other=0.0)
        scores = tl.dot(b_q, tl.trans(b_k)) * scale
        scores = tl.where(m_s[None, :], scores, -float("inf"))
        peak = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - peak[:, None])
        keep = tl.exp(top - peak)
        total = total * keep + tl.sum(weights, 1)
        mixed = mixed * keep[:, None] + tl.dot(weights.to(b_v.dtype), b_v)
        top = peak
    tl.store(p_out + query, (mixed / total[:, None]).to(p_out.dtype.element_ty), mask=m_q[:, None])


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """See `draftwood.kernels.batched_attention.attend_rows`."""
    rows, heads, width = q.shape
    kv_heads, capacity = keys.shape[1], keys.shape[2]
    out = torch.empty_like(q)
    queries = max(16, triton.next_power_of_2(heads // kv_heads))
    _attend_rows[(rows, kv_heads)](
        q, keys, values, lengths, out, scale, S=capacity, H=heads, G=kv_heads, D=width, QUERIES=queries, KEYS=KEYS,
        num_warps=4,
    )  # fmt: skip
    return out
