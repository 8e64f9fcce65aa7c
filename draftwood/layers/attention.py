"""Full attention with grouped KV heads, optional q/k norms and an optional output gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from draftwood.cache.kv import KVState
from draftwood.cache.step import DecodeStep, PrefillStep
from draftwood.kernels.activation import sigmoid
from draftwood.kernels.operand import Operands
from draftwood.kernels.rope import load_rotate_heads
from draftwood.layers.linear import Linear, Projection

if TYPE_CHECKING:
    from draftwood.kernels.operand import Operand, Product


class Attention:
    """Softmax attention over everything before a row and itself.

    qkv: query, key and value matrices; with `gated` the query's rows are, per head, D values then D gate values
    (SPEC-qwen35 2.1). q_norm, k_norm: float32 [D] or None. pairing: see kernels.rope.
    """

    def __init__(
        self,
        qkv: Projection,
        out: Linear,
        heads: int,
        kv_heads: int,
        head_dim: int,
        pairing: str,
        eps: float,
        gated: bool = False,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        device: str = "cpu",
    ) -> None:
        self.qkv, self.out = qkv, out
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.pairing, self.eps, self.gated = pairing, eps, gated
        self.q_norm, self.k_norm = q_norm, k_norm
        self.scale = head_dim**-0.5
        self._rotate = load_rotate_heads(device)

    def _project(self, x: Operand, turn: Tensor, prefill: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x [N, E] -> rotated queries [N, H, D], rotated keys and values [N, G, D], gate [N, H, D] or None."""
        query, key, value = self.qkv(x, prefill)
        gate = None
        if self.gated:
            both = query.unflatten(-1, (self.heads, 2, self.head_dim))
            q, gate = both[:, :, 0], both[:, :, 1]
        else:
            q = query.unflatten(-1, (self.heads, self.head_dim))
        k = key.unflatten(-1, (self.kv_heads, self.head_dim))
        q, k = self._rotate(q, k, turn, self.pairing, self.q_norm, self.k_norm, self.eps)
        return q, k, value.unflatten(-1, (self.kv_heads, self.head_dim)), gate

    def decode(self, x: Operand, state: KVState, step: DecodeStep, operands: Operands) -> Product:
        """Nodes of a tree: x [R, E] -> [R, E]."""
        q, k, v, gate = self._project(x, step.turn, prefill=False)
        return self.out.product(operands.gate(state.decode(q, k, v, step, self.scale), gate))

    def prefill(self, x: Tensor, state: KVState, step: PrefillStep) -> Tensor:
        """Consecutive tokens on granules: x float32 [T, E] -> [T, E]."""
        q, k, v, gate = self._project(x, step.turn, prefill=True)
        mixed = state.prefill(q, k, v, step, self.scale).flatten(1)
        return self.out(mixed if gate is None else mixed * sigmoid(gate.flatten(1)), prefill=True)
