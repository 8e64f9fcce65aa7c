"""The SwiGLU feed-forward network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from draftwood.kernels.operand import Operands
from draftwood.layers.linear import Linear, Projection

if TYPE_CHECKING:
    from draftwood.kernels.operand import Operand, Product


class MLP:
    """down(silu(gate x) * (up x)); gate and up share one product.

    gate: SiLU of its first argument times the second; another implementation where a row's bits may depend on others.
    """

    def __init__(self, gate_up: Projection, down: Linear, gate: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.gate_up, self.down, self._gate = gate_up, down, gate

    def decode(self, x: Operand, operands: Operands) -> Product:
        """Rows of a decode pass [R, E] -> [R, E]."""
        return self.down.product(operands.silu_gate(self.gate_up.product(x)))

    def __call__(self, x: Tensor, prefill: bool) -> Tensor:
        """x float32 [N, E] -> [N, E]."""
        # No name for gate and up, so that they are gone before the next product needs room.
        return self.down(self._gate(*self.gate_up(x, prefill)), prefill)
