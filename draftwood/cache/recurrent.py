"""The state of one gated delta net layer, with the replay tape that stands in for a state per node.

A decode pass leaves per node its raw projection and its two gates on the tape. Committing recomputes the state along
the accepted path from them with the arithmetic of plain decoding, so the state after any mix of chains and trees has
the bits of plain decoding (DESIGN section 4). The raw projection comes in the tape's dtype: bfloat16, as it left the
projection, or float32 in float32 mode; everything after it is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from draftwood.cache.allocation import zeros
from draftwood.cache.base import LayerState
from draftwood.cache.buffers import recurrent_buffers
from draftwood.cache.step import DecodeStep
from draftwood.kernels.activation import sigmoid, softplus
from draftwood.kernels.delta_rule import DeltaShape, advance, granules, nodes


@dataclass(frozen=True)
class DeltaWeights:
    """What a layer's recurrence is made of besides its matrices.

    conv: float32 [4, F], oldest tap first. rate: -exp(A_log) [Hv]. bias: dt bias [Hv]. tape: the dtype that the raw
    projection is rounded to in every mode.
    """

    conv: Tensor
    rate: Tensor
    bias: Tensor
    tape: torch.dtype


class RecurrentState(LayerState):
    """Float32 state [Hv, K, V] and convolution window [3, F] of one layer and sequence."""

    def __init__(self, shape: DeltaShape, weights: DeltaWeights, device: str) -> None:
        self.shape, self.weights = shape, weights
        sizes = (shape.value_heads, shape.key_dim, shape.value_dim, shape.channels, len(weights.conv))
        self.state, self.window = (zeros(buffer, device) for buffer in recurrent_buffers(*sizes))
        self.length = 0
        self._tape: tuple[Tensor, Tensor, Tensor] | None = None

    def prefill(self, raw: Tensor, a: Tensor, b: Tensor, count: int) -> Tensor:
        """A prefill pass: the projection's raw [T, F], a and b [T, Hv], the first `count` rows real -> [T, Hv, V]."""
        raw, g, beta = self._gates(raw, a, b)
        out, self.state, self.window = granules(
            self.state, self.window, raw.float(), g, beta, self.weights.conv, self.shape, count
        )
        self.length += count
        return out

    def stage(self, raw: Tensor, a: Tensor, b: Tensor, step: DecodeStep) -> Tensor:
        """A decode pass: the projection's raw [R, F], a and b [R, Hv] -> outputs [R, Hv, V]; rows go on the tape."""
        raw, g, beta = self._gates(raw, a, b)
        tree, decay = step.host, g.exp()
        self._tape = (raw, decay, beta)
        return nodes(
            self.state, self.window, raw.float(), decay, beta, self.weights.conv, self.shape, tree.parents, tree.order
        )

    def _gates(self, raw: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The raw projection in the tape's dtype, the log decay and beta."""
        weights = self.weights
        return raw.to(weights.tape), weights.rate * softplus(a + weights.bias), sigmoid(b)

    def commit(self, path: Tensor, count: int) -> None:
        """Replay the nodes `path[:count]` from the tape."""
        if self._tape is None:
            raise ValueError("nothing is staged")
        raw, decay, beta = (t[path[:count]] for t in self._tape)
        conv = self.weights.conv
        self.state, self.window = advance(self.state, self.window, raw.float(), decay, beta, conv, self.shape)
        self.length += count
        self._tape = None

    def truncate(self, length: int) -> None:
        """A recurrent state has no earlier self: only `length` equal to its own is possible."""
        if length != self.length:
            raise ValueError(
                f"a recurrent state at {self.length} tokens cannot be truncated to {length}; restore a snapshot"
            )

    def snapshot(self) -> Any:
        """State, window and length. `commit` and `prefill` make new tensors, so no copy is needed."""
        return self.length, self.state, self.window

    def restore(self, snapshot: Any) -> None:
        """Return to a snapshot."""
        self.length, self.state, self.window = snapshot
        self._tape = None

    def fill_random(self, length: int, seed: int) -> None:
        """See LayerState."""
        generator = torch.Generator(self.state.device).manual_seed(seed)
        self.state, self.window = (torch.empty_like(t).normal_(generator=generator) for t in (self.state, self.window))
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of state and window."""
        return self.state.nbytes + self.window.nbytes
