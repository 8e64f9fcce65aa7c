"""One sequence: the states of all layers and the tokens they hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from draftwood.cache.allocation import zeros
from draftwood.cache.base import LayerState
from draftwood.cache.buffers import token_buffer


class Sequence:
    """States and committed tokens of one request.

    states: one per layer. tokens: int64, the committed token ids, `length` of them valid. `length` is the host's copy
    of the committed count: it changes only between passes. The last round of a request may commit up to MAX_ROWS
    tokens past `capacity`; every buffer has that room.
    """

    def __init__(self, states: Iterable[LayerState], capacity: int, device: str) -> None:
        self.states = list(states)
        self.tokens = zeros(token_buffer(capacity), device)
        self.capacity = capacity
        self.length = 0

    def extend(self, tokens: Tensor) -> None:
        """Note tokens that a prefill pass has put into every state; int64 [n]."""
        self.tokens[self.length : self.length + len(tokens)] = tokens
        self.length += len(tokens)

    def commit(self, path: Tensor, tokens: Tensor, count: int) -> None:
        """Keep the nodes `path[:count]`, whose token ids are `tokens[:count]`, in every state."""
        for state in self.states:
            state.commit(path, count)
        self.extend(tokens[:count])

    def truncate(self, length: int) -> None:
        """Drop everything from `length` on."""
        for state in self.states:
            state.truncate(length)
        self.length = length

    def snapshot(self) -> Any:
        """A copy that `restore` accepts."""
        return self.length, self.tokens[: self.length].clone(), [state.snapshot() for state in self.states]

    def restore(self, snapshot: Any) -> None:
        """Return to a snapshot of this sequence."""
        self.length, tokens, states = snapshot
        self.tokens[: self.length] = tokens
        for state, saved in zip(self.states, states, strict=True):
            state.restore(saved)

    @property
    def nbytes(self) -> int:
        """Bytes of all long-lived buffers."""
        return self.tokens.nbytes + sum(state.nbytes for state in self.states)
