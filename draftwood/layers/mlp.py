"""The SwiGLU feed-forward network."""

from __future__ import annotations

from torch import Tensor

from draftwood.kernels.activation import silu
from draftwood.layers.linear import Linear, Projection


class MLP:
    """down(silu(gate x) * (up x)); gate and up share one product."""

    def __init__(self, gate_up: Projection, down: Linear) -> None:
        self.gate_up, self.down = gate_up, down

    def __call__(self, x: Tensor, prefill: bool) -> Tensor:
        """x float32 [N, E] -> [N, E]."""
        gate, up = self.gate_up(x, prefill)
        return self.down(silu(gate) * up, prefill)
