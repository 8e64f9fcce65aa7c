"""Attention of a block-diffusion draft: K and V come from the target's features and from the block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as functional
from torch import Tensor

from draftwood.cache.device_draft import DeviceDraftState
from draftwood.cache.kv import KVState
from draftwood.kernels.attention.block import attend_block, first_visible
from draftwood.kernels.operand import Operands
from draftwood.kernels.rope import load_rotate_heads, rotate
from draftwood.layers.linear import Linear, Projection

if TYPE_CHECKING:
    from draftwood.kernels.operand import Operand, Product


class ContextProjection:
    """K and V of context rows in every layer by one product, as all layers read the same rows.

    matrices: the key matrices of the L layers, then their value matrices. k_norms: one float32 [D] a layer.
    """

    def __init__(self, matrices: Projection, k_norms: list[Tensor], kv_heads: int, eps: float) -> None:
        self._matrices, self._kv_heads, self._eps = matrices, kv_heads, eps
        self._norms = torch.stack(k_norms).unsqueeze(1)

    def __call__(self, context: Tensor, turn: Tensor, prefill: bool) -> tuple[list[Tensor], list[Tensor]]:
        """context float32 [n, E], which gets no input norm, turn [n, D/2] -> K and V of each layer, [n, G, D]."""
        products = self._matrices(context, prefill)
        layers, _, width = self._norms.shape
        shape = len(context), layers, self._kv_heads, width
        keys = functional.rms_norm(torch.cat(products[:layers], -1).view(shape), (width,), None, self._eps)
        turned = rotate((keys * self._norms).flatten(1, 2), turn, "halves").view(shape)
        return list(turned.unbind(1)), [value.unflatten(-1, shape[2:]) for value in products[layers:]]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return self._matrices.nbytes


class DraftAttention:
    """Grouped-query attention of a block over the cached context and over itself (SPEC-dflash 1.3).

    qkv: the matrices of the block's rows. q_norm, k_norm: float32 [D]. window: how far back a row sees, None for
    everything. causal: whether a row is kept from the rows after it.
    """

    def __init__(
        self,
        qkv: Projection,
        out: Linear,
        q_norm: Tensor,
        k_norm: Tensor,
        heads: int,
        kv_heads: int,
        eps: float,
        window: int | None,
        causal: bool,
    ) -> None:
        self.qkv, self.out = qkv, out
        self.head_dim, self.eps, self.window, self.causal = len(k_norm), eps, window, causal
        self.heads, self.kv_heads = heads, kv_heads
        self.scale = self.head_dim**-0.5
        self._norms = torch.cat((q_norm.expand(heads, -1), k_norm.expand(kv_heads, -1)))
        self._q_norm, self._k_norm = q_norm, k_norm
        self._rotate = load_rotate_heads(str(k_norm.device.type))

    def on_device(
        self, x: Operand, turn: Tensor, committed: Tensor, state: DeviceDraftState, operands: Operands
    ) -> Product:
        """The block as `__call__` has it, on a GPU: committed, int64 [1], tells how many rows are before it."""
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)) for part in self.qkv(x))
        q, k = self._rotate(query, key, turn, "halves", self._q_norm, self._k_norm, self.eps)
        state.store(k, value, committed, None)
        return self.out.product(operands.gate(state.attend(q, committed, self.causal, self.scale), None))

    def __call__(self, x: Tensor, turn: Tensor, mask: Tensor | None, state: KVState) -> Tensor:
        """The block: x float32 [B, E] at the positions after the cached rows, mask of `grouped_mask` -> [B, E].

        The block's own K and V lie behind the cached rows during the call and are never committed.
        """
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)) for part in self.qkv(x))
        both = functional.rms_norm(torch.cat((query, key), 1), (self.head_dim,), None, self.eps)
        turned = rotate(both * self._norms, turn, "halves")
        q, k = turned[:, : self.heads], turned[:, self.heads :]
        state.stage(k, value, in_place=True)
        start, stop = first_visible(state.length, self.window), state.length + len(x)
        return self.out(state.leave(attend_block(state.enter(q), *state.read(start, stop), mask, self.scale)))

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return self.qkv.nbytes + self.out.nbytes
