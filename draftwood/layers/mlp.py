"""The SwiGLU feed-forward network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from draftwood.layers.linear import Linear, Projection


class MLP:
    """down(silu(gate x) * (up x)); gate and up share one product.

    gate: SiLU of its first argument times the second; another implementation where a row's bits may depend on others.
    """

    def __init__(self, gate_up: Projection, down: Linear, gate: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.gate_up, self.down, self._gate = gate_up, down, gate

    def __call__(self, x: Tensor, prefill: bool) -> Tensor:
        """x float32 [N, E] -> [N, E]."""
        gate, up = self.gate_up(x, prefill)
        return self.down(self._gate(gate, up), prefill)
