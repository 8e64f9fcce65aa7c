"""What lies between two products, on float32 tensors: an operand is the tensor itself."""

from __future__ import annotations

from torch import Tensor

from draftwood.kernels.activation import reference as activation
from draftwood.kernels.activation import sigmoid
from draftwood.kernels.delta_rule.reference import gated_norm
from draftwood.kernels.norm.reference import add_rms_norm, rms_norm

__all__ = ["add_norm", "gate", "gated_norm", "silu_gate"]


def add_norm(x: Tensor, y: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """x [R, E] += y, if there is one; the RMS norm of x."""
    return rms_norm(x, weight, eps) if y is None else add_rms_norm(x, y, weight, eps)


def silu_gate(gate_up: Tensor) -> Tensor:
    """gate_up [R, 2 N] -> silu(gate) * up [R, N]."""
    gate, up = gate_up.chunk(2, 1)
    return activation.silu_gate(gate, up)


def gate(mixed: Tensor, gate: Tensor | None) -> Tensor:
    """mixed [R, H D] or [R, H, D] -> mixed * sigmoid(gate) [R, H D]; gate as mixed."""
    return mixed.flatten(1) if gate is None else mixed.flatten(1) * sigmoid(gate.flatten(1))
