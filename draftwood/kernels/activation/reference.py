"""Sigmoid, SiLU and softplus built from `exp`, so that an element's bits do not depend on where it lies.

torch's own CPU sigmoid, silu and softplus use another formula for the last few elements of a buffer than for the
rest; which elements are last depends on the number of rows. `exp`, `log1p` and division do not have that.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), elementwise, float32."""
    return torch.neg(x).exp_().add_(1.0).reciprocal_()


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), elementwise, float32."""
    return x / torch.neg(x).exp_().add_(1.0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), and x itself above 20 (SPEC-qwen35 2.3), elementwise, float32."""
    return torch.where(x > 20.0, x, torch.log1p(torch.exp(x.clamp(max=20.0))))


def silu_gate(gate: Tensor, up: Tensor, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """silu(gate) * up, elementwise; arithmetic in float32."""
    return (silu(gate.float()) * up.float()).to(out_dtype)
