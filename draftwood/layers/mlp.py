"""The SwiGLU feed-forward network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from draftwood.kernels.activation import silu
from draftwood.layers.linear import Linear, Projection


class MLP:
    """down(silu(gate x) * (up x)); gate and up share one product.

    activation: SiLU; another implementation where the bits of a row may depend on the others.
    """

    def __init__(self, gate_up: Projection, down: Linear, activation: Callable[[Tensor], Tensor] = silu) -> None:
        self.gate_up, self.down, self._activation = gate_up, down, activation

    def __call__(self, x: Tensor, prefill: bool) -> Tensor:
        """x float32 [N, E] -> [N, E]."""
        gate, up = self.gate_up(x, prefill)
        return self.down(self._activation(gate) * up, prefill)
