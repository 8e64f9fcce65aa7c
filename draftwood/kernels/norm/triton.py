"""RMS norm, with the addition to the residual stream before it: one program per row, which holds all of it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.kernels._rows import aligned, is_aligned, require, row_stride


@triton.jit
def _rms_norm(
    p_x, p_y, p_weight, p_out, eps, X_STRIDE: tl.constexpr, Y_STRIDE: tl.constexpr, N: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, BLOCK)
    m_n = o_n < N
    b_x = tl.load(p_x + row * X_STRIDE + o_n, mask=m_n, other=0.0).to(tl.float32)
    if p_y is not None:
        b_x += tl.load(p_y + row * Y_STRIDE + o_n, mask=m_n, other=0.0).to(tl.float32)
        tl.store(p_x + row * X_STRIDE + o_n, b_x, mask=m_n)
    b_weight = tl.load(p_weight + o_n, mask=m_n, other=0.0)
    scale = tl.rsqrt(tl.sum(b_x * b_x, 0) / N + eps)
    tl.store(p_out + row * N + o_n, (b_x * scale * b_weight).to(p_out.dtype.element_ty), mask=m_n)


def shape_of(width: int) -> tuple[int, int]:
    """Columns of a program, and its warps, for rows of `width`: 16 columns a lane."""
    block: int = triton.next_power_of_2(width)
    return block, min(max(block // 512, 1), 16)


def _launch(x: Tensor, y: Tensor | None, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """x [M, N], written if there is a y [M, N]; weight [N]. Returns out [M, N]."""
    rows, width = x.shape
    require(weight.shape == (width,), f"a norm of rows of {width} needs as many weights, not {tuple(weight.shape)}")
    block, warps = shape_of(width)
    _rms_norm[(rows,)](
        x, y, aligned(weight), out, eps, X_STRIDE=row_stride(x), Y_STRIDE=0 if y is None else row_stride(y),
        N=width, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """See `draftwood.kernels.norm.load_rms_norm`."""
    made = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    _launch(aligned(x.reshape(-1, x.shape[-1])), None, weight, eps, made)
    return made


def add_rms_norm(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    eps: float,
    out_dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """See `draftwood.kernels.norm.load_add_rms_norm`."""
    require(x.shape == y.shape and x.dim() == 2, f"x and y are [R, N], not {tuple(x.shape)} and {tuple(y.shape)}")
    require(is_aligned(x), "x is written in place, so it must begin on a multiple of 16 bytes")
    if out is None:
        out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    require(out.shape == x.shape and out.is_contiguous(), f"out is [R, N] and contiguous, not {tuple(out.shape)}")
    return _launch(x, aligned(y), weight, eps, out)
