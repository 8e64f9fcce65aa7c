"""Rotary of query and key heads, with the RMS norm of each head before it: one program per row and head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.kernels._rows import aligned, require, row_stride


@triton.jit
def _head(
    p_x, p_norm, p_turn, p_out, eps, D: tl.constexpr, WIDTH: tl.constexpr, ADJACENT: tl.constexpr, BLOCK: tl.constexpr
):
    """One head of D values; p_turn: cos and sin of each of the WIDTH / 2 pairs, one after the other."""
    half: tl.constexpr = WIDTH // 2
    o_d = tl.arange(0, BLOCK)
    m_d, m_turned = o_d < D, o_d < WIDTH
    if ADJACENT:
        pair, second = o_d // 2, o_d % 2 == 1
        partner = o_d + 1 - 2 * (o_d % 2)
    else:
        second = o_d >= half
        pair = tl.where(second, o_d - half, o_d)
        partner = tl.where(second, o_d - half, o_d + half)
    b_x = tl.load(p_x + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_y = tl.load(p_x + partner, mask=m_turned, other=0.0).to(tl.float32)
    if p_norm is not None:
        scale = tl.rsqrt(tl.sum(b_x * b_x, 0) / D + eps)
        b_x *= scale * tl.load(p_norm + o_d, mask=m_d, other=0.0)
        b_y *= scale * tl.load(p_norm + partner, mask=m_turned, other=0.0)
    b_cos = tl.load(p_turn + 2 * pair, mask=m_turned, other=1.0)
    b_sin = tl.load(p_turn + 2 * pair + 1, mask=m_turned, other=0.0)
    turned = b_x * b_cos + b_y * tl.where(second, b_sin, -b_sin)
    tl.store(p_out + o_d, tl.where(m_turned, turned, b_x).to(p_out.dtype.element_ty), mask=m_d)


@triton.jit
def _rotate_heads(
    p_q, p_k, p_q_norm, p_k_norm, p_turn, p_q_out, p_k_out, eps, Q_ROW: tl.constexpr, Q_HEAD: tl.constexpr,
    K_ROW: tl.constexpr, K_HEAD: tl.constexpr, H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    ADJACENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p_turn += row * WIDTH
    if head < H:
        p_q_out += (row * H + head) * D
        _head(p_q + row * Q_ROW + head * Q_HEAD, p_q_norm, p_turn, p_q_out, eps, D, WIDTH, ADJACENT, BLOCK)
    else:
        head -= H
        p_k_out += (row * G + head) * D
        _head(p_k + row * K_ROW + head * K_HEAD, p_k_norm, p_turn, p_k_out, eps, D, WIDTH, ADJACENT, BLOCK)


def shape_of(head_dim: int) -> tuple[int, int]:
    """Values of a program, and its warps: 8 values a lane."""
    block: int = triton.next_power_of_2(head_dim)
    return block, max(block // 256, 1)


def rotate_heads(
    q: Tensor,
    k: Tensor,
    turn: Tensor,
    pairing: str,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    out_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """See `draftwood.kernels.rope.load_rotate_heads`."""
    (rows, heads, width), kv_heads = q.shape, k.shape[1]
    turned = 2 * turn.shape[-1]
    require(
        k.shape == (rows, kv_heads, width) and len(turn) == rows and turned <= width,
        f"q {tuple(q.shape)}, k {tuple(k.shape)} and turn {tuple(turn.shape)} are not of one pass",
    )
    for norm in (q_norm, k_norm):
        require(norm is None or norm.shape == (width,), f"the norm of a head has {width} weights")
    q, k, turns = aligned(q), aligned(k), aligned(torch.view_as_real(turn).flatten(1))
    q_out, k_out = (torch.empty(x.shape, dtype=out_dtype, device=x.device) for x in (q, k))
    block, warps = shape_of(width)
    _rotate_heads[(rows, heads + kv_heads)](
        q, k, None if q_norm is None else aligned(q_norm), None if k_norm is None else aligned(k_norm), turns,
        q_out, k_out, eps, Q_ROW=row_stride(q), Q_HEAD=q.stride(1), K_ROW=row_stride(k), K_HEAD=k.stride(1), H=heads,
        G=kv_heads, D=width, WIDTH=turned, ADJACENT=pairing == "adjacent", BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return q_out, k_out
