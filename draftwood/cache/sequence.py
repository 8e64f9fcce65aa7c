"""One sequence: the states of all layers and the tokens they hold."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from draftwood.cache.allocation import zeros
from draftwood.cache.base import Keep, LayerState
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
        self.committed = torch.zeros(1, dtype=torch.int64, device=device)
        self._keepers = _keepers(self.states)

    @property
    def on_device(self) -> bool:
        """Whether a round can be kept without the host."""
        return self._keepers is not None

    def extend(self, tokens: Tensor) -> None:
        """Note tokens that a prefill pass has put into every state; int64 [n]."""
        self.tokens[self.length : self.length + len(tokens)] = tokens
        self._advance(len(tokens))

    def commit(self, path: Tensor, tokens: Tensor, count: int) -> None:
        """Keep the nodes `path[:count]`, whose token ids are `tokens[:count]`, in every state."""
        if self._keepers is None:
            for state in self.states:
                state.commit(path, count)
        else:
            self.keep(path, torch.tensor(count, device=path.device), self.committed)
            self._noted(count)
        self.extend(tokens[:count])

    def keep(self, path: Tensor, count: Tensor, committed: Tensor) -> None:
        """Keep the nodes path[:count] behind `committed` tokens (int64 [64], [] and [1]) without the host.

        `kept` follows on the host, once it knows the count.
        """
        if self._keepers is None:
            raise ValueError("a state of this sequence keeps nodes on the host only")
        for keep in self._keepers:
            keep(path, count, committed)

    def kept(self, count: int) -> None:
        """A round that moved tokens, `committed` and all states on by `count` tokens is noted on the host."""
        self._noted(count)
        self.length += count

    def _noted(self, count: int) -> None:
        for state in self.states:
            state.length += count

    def truncate(self, length: int) -> None:
        """Drop everything from `length` on."""
        for state in self.states:
            state.truncate(length)
        self._advance(length - self.length)

    def fill_random(self, length: int, seed: int) -> None:
        """From empty to `length` tokens that nobody read, with random rows and states for them: for benchmarks.

        Their ids are 0. The same seed fills alike.
        """
        if self.length:
            raise ValueError(f"a sequence of {self.length} tokens is not empty; truncate it first")
        for place, state in enumerate(self.states):
            state.fill_random(length, seed + place)
        self.tokens[:length] = 0
        self._advance(length)

    def skip(self, count: int) -> None:
        """Go on by `count` tokens whose rows nobody wrote: for passes whose results nobody reads."""
        self._noted(count)
        self._advance(count)

    def _advance(self, count: int) -> None:
        self.length += count
        self.committed.fill_(self.length)

    def snapshot(self) -> Any:
        """A copy that `restore` accepts."""
        return self.length, self.tokens[: self.length].clone(), [state.snapshot() for state in self.states]

    def restore(self, snapshot: Any) -> None:
        """Return to a snapshot of this sequence."""
        self.length, tokens, states = snapshot
        self.committed.fill_(self.length)
        self.tokens[: self.length] = tokens
        for state, saved in zip(self.states, states, strict=True):
            state.restore(saved)

    def mark(self) -> Any:
        """What `rewind` needs to come back here after more tokens were committed; rows of K and V are not copied."""
        return self.length, [state.mark() for state in self.states]

    def rewind(self, mark: Any) -> None:
        """Drop what was committed since a mark, and let states be what they were."""
        length, states = mark
        for state, saved in zip(self.states, states, strict=True):
            state.rewind(saved)
        self._advance(length - self.length)

    @property
    def nbytes(self) -> int:
        """Bytes of all long-lived buffers."""
        return self.tokens.nbytes + sum(state.nbytes for state in self.states)


def _keepers(states: list[LayerState]) -> list[Keep] | None:
    """What keeps nodes in the states of each class; None if one of them needs the host."""
    groups = groupby(sorted(states, key=lambda state: type(state).__name__), key=type)
    keepers = [kind.keep_together(list(group)) for kind, group in groups]  # type: ignore[attr-defined]
    found = [keep for keep in keepers if keep is not None]
    return found if len(found) == len(keepers) else None
