"""The state of one gated delta net layer, with the replay tape that stands in for a state per node.

A decode pass leaves per node its raw projection and its two gates on the tape. Committing recomputes the state along
the accepted path from them with the arithmetic of plain decoding, so the state after any mix of chains and trees has
the bits of plain decoding (DESIGN section 4). The raw projection comes in the tape's dtype: bfloat16, as it left the
projection, or float32 in float32 mode; everything after it is float32.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from draftwood.cache.allocation import zeros
from draftwood.cache.base import LayerState
from draftwood.cache.buffers import recurrent_buffers
from draftwood.kernels.delta_rule import DeltaShape, advance, granules, nodes


class RecurrentState(LayerState):
    """Float32 state [Hv, K, V] and convolution window [3, F] of one layer and sequence."""

    def __init__(self, shape: DeltaShape, weight: Tensor, device: str) -> None:
        self.shape, self.weight = shape, weight
        sizes = (shape.value_heads, shape.key_dim, shape.value_dim, shape.channels, len(weight))
        self.state, self.window = (zeros(buffer, device) for buffer in recurrent_buffers(*sizes))
        self.length = 0
        self._tape: tuple[Tensor, Tensor, Tensor] | None = None

    def prefill(self, raw: Tensor, g: Tensor, beta: Tensor, count: int) -> Tensor:
        """A prefill pass: raw [T, F], g (log decay) and beta [T, Hv], the first `count` rows real -> [T, Hv, V]."""
        out, self.state, self.window = granules(
            self.state, self.window, raw.float(), g, beta, self.weight, self.shape, count
        )
        self.length += count
        return out

    def stage(self, raw: Tensor, g: Tensor, beta: Tensor, parents: list[int], order: list[int]) -> Tensor:
        """A decode pass: raw [R, F], g and beta [R, Hv] -> outputs [R, Hv, V]; the rows go on the tape."""
        decay = g.exp()
        self._tape = (raw, decay, beta)
        return nodes(self.state, self.window, raw.float(), decay, beta, self.weight, self.shape, parents, order)

    def commit(self, path: Tensor, count: int) -> None:
        """Replay the nodes `path[:count]` from the tape."""
        if self._tape is None:
            raise ValueError("nothing is staged")
        raw, decay, beta = (t[path[:count]] for t in self._tape)
        self.state, self.window = advance(self.state, self.window, raw.float(), decay, beta, self.weight, self.shape)
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

    @property
    def nbytes(self) -> int:
        """Bytes of state and window."""
        return self.state.nbytes + self.window.nbytes
