"""silu(gate) * up, elementwise: a program per row and 1024 columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.kernels._math import silu
from draftwood.kernels._rows import aligned, require, row_stride

COLUMNS = 1024
"""Columns of a program."""


@triton.jit
def _silu_gate(
    p_gate, p_up, p_out, GATE_STRIDE: tl.constexpr, UP_STRIDE: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    m_n = o_n < N
    b_gate = tl.load(p_gate + row * GATE_STRIDE + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_up = tl.load(p_up + row * UP_STRIDE + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_out = silu(b_gate) * b_up
    tl.store(p_out + row * N + o_n, b_out.to(p_out.dtype.element_ty), mask=m_n)


def silu_gate(gate: Tensor, up: Tensor, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """See `draftwood.kernels.activation.load_silu_gate`."""
    require(gate.shape == up.shape and gate.dim() == 2, f"gate {tuple(gate.shape)} and up {tuple(up.shape)} differ")
    (rows, width), gate, up = gate.shape, aligned(gate), aligned(up)
    out = torch.empty(rows, width, dtype=out_dtype, device=gate.device)
    _silu_gate[(triton.cdiv(width, COLUMNS), rows)](
        gate, up, out, GATE_STRIDE=row_stride(gate), UP_STRIDE=row_stride(up), N=width, COLUMNS=COLUMNS, num_warps=4
    )
    return out
