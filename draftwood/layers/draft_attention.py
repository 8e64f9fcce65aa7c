"""Attention of a block-diffusion draft: K and V come from the target's features and from the block."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from draftwood.cache.kv import KVState
from draftwood.kernels.attention.block import attend_block, first_visible
from draftwood.kernels.norm import rms_norm
from draftwood.kernels.rope import rotate
from draftwood.layers.linear import Linear, Projection


class DraftAttention:
    """Grouped-query attention of a block over the cached context and over itself (SPEC-dflash 1.3).

    query: one matrix. key_value: two, apart from the query because context rows have no query. q_norm,
    k_norm: float32 [D]. window: how far back a row sees, None for everything. causal: whether a row sees the
    rows after it.
    """

    def __init__(
        self,
        query: Projection,
        key_value: Projection,
        out: Linear,
        q_norm: Tensor,
        k_norm: Tensor,
        heads: int,
        kv_heads: int,
        eps: float,
        window: int | None,
        causal: bool,
    ) -> None:
        self.query, self.key_value, self.out, self.k_norm = query, key_value, out, k_norm
        self.head_dim, self.eps, self.window, self.causal = len(k_norm), eps, window, causal
        self.heads, self.kv_heads = heads, kv_heads
        self.scale = self.head_dim**-0.5
        self._norms = torch.cat((q_norm.expand(heads, -1), k_norm.expand(kv_heads, -1)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.head_dim)

    def append(self, context: Tensor, turn: Tensor, count: int, state: KVState, prefill: bool) -> None:
        """Cache K and V of the first `count` rows of context float32 [n, E], which get no input norm."""
        key, value = self.key_value(context, prefill)
        k = rotate(rms_norm(self._heads(key[:count]), self.k_norm, self.eps), turn, "halves")
        state.append(k, self._heads(value[:count]), count)

    def __call__(self, x: Tensor, turn: Tensor, mask: Tensor | None, state: KVState) -> Tensor:
        """The block: x float32 [B, E] at the positions after the cached rows, mask of `block_mask` -> [B, E].

        The block's own K and V lie behind the cached rows during the call and are never committed.
        """
        (query,), (key, value) = self.query(x), self.key_value(x)
        both = functional.rms_norm(self._heads(torch.cat((query, key), -1)), (self.head_dim,), None, self.eps)
        turned = rotate(both * self._norms, turn, "halves")
        q, k = turned[:, : self.heads], turned[:, self.heads :]
        state.stage(k, self._heads(value), in_place=True)
        start, stop = first_visible(state.length, self.window), state.length + len(x)
        return self.out(state.leave(attend_block(state.enter(q), *state.read(start, stop), mask, self.scale)))

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return self.query.nbytes + self.key_value.nbytes + self.out.nbytes
