"""Full attention with grouped KV heads, optional q/k norms and an optional output gate."""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.cache.kv import KVState
from draftwood.kernels.activation import sigmoid
from draftwood.kernels.attention import attend_granules, attend_nodes
from draftwood.kernels.norm import rms_norm
from draftwood.kernels.rope import rotate
from draftwood.layers.linear import Linear, Projection
from draftwood.layers.step import DecodeStep, PrefillStep


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
    ) -> None:
        self.qkv, self.out = qkv, out
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.pairing, self.eps, self.gated = pairing, eps, gated
        self.q_norm, self.k_norm = q_norm, k_norm
        self.scale = head_dim**-0.5

    def _project(self, x: Tensor, turn: Tensor, prefill: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x [N, E] -> rotated queries [N, H, D], rotated keys and values [N, G, D], gate [N, H * D] or None."""
        query, key, value = self.qkv(x, prefill)
        gate = None
        if self.gated:
            both = query.unflatten(-1, (self.heads, 2, self.head_dim))
            q, gate = both[:, :, 0], both[:, :, 1].flatten(1)
        else:
            q = query.unflatten(-1, (self.heads, self.head_dim))
        k = key.unflatten(-1, (self.kv_heads, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = rms_norm(q, self.q_norm, self.eps), rms_norm(k, self.k_norm, self.eps)
            q, k = rotate(q, turn, self.pairing), rotate(k, turn, self.pairing)
        else:
            q, k = rotate(torch.cat((q, k), 1), turn, self.pairing).split([self.heads, self.kv_heads], 1)
        return q, k, value.unflatten(-1, (self.kv_heads, self.head_dim)), gate

    def _finish(self, mixed: Tensor, gate: Tensor | None, prefill: bool) -> Tensor:
        flat = mixed.flatten(1)
        return self.out(flat if gate is None else flat * sigmoid(gate), prefill)

    def decode(self, x: Tensor, state: KVState, step: DecodeStep) -> Tensor:
        """Nodes of a tree: x float32 [R, E] -> [R, E]."""
        q, k, v, gate = self._project(x, step.turn, prefill=False)
        state.stage(k, v, in_place=step.chain)
        end = step.committed + len(x) if step.chain else step.committed + step.deepest + 1
        keys, values = state.read(0, end)
        staged = None if step.chain else state.staged(len(x))
        query = state.enter(q)
        mixed = attend_nodes(query, keys, values, staged, step.committed, step.order, step.depth, self.scale)
        return self._finish(state.leave(mixed), gate, prefill=False)

    def prefill(self, x: Tensor, state: KVState, step: PrefillStep) -> Tensor:
        """Consecutive tokens on granules: x float32 [T, E] -> [T, E]."""
        q, k, v, gate = self._project(x, step.turn, prefill=True)
        state.append(k, v, step.count)
        end = step.start + len(x)
        keys, values = state.read(0, end)
        mixed = attend_granules(state.enter(q), keys, values, step.start, self.scale)
        return self._finish(state.leave(mixed), gate, prefill=True)
