"""What a draft keeps of one sequence on a GPU: K and V of its committed tokens in every layer, for captured rounds.

The rows lie as in `KVState` and `WindowedKVState`, which also take in the prompt. In a round kernels store rows behind
those that are there, and read how many that are on the device. A window's rows move to the front between rounds, when
the host, which knows the length too, says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draftwood.cache.codecs import kept_rows
from draftwood.cache.kv import KVState
from draftwood.cache.spec import KVSpec
from draftwood.kernels.attention import load_attend_block
from draftwood.kernels.kv_store import load_rotate_rows, load_store_rows


class DeviceDraftState:
    """One layer's rows. first: int64 [1], the position of row 0."""

    def __init__(self, kv: tuple[KVSpec, KVSpec], rows: KVState, window: int | None, device: str) -> None:
        self.rows, self.window = rows, window
        self.first = torch.zeros(1, dtype=torch.int64, device=device)
        self._keys, self._values = kept_rows(kv[0], rows.keys), kept_rows(kv[1], rows.values)
        self._store, self._rotate = load_store_rows(device), load_rotate_rows(device)
        self._attend = load_attend_block(device)

    def store(self, keys: Tensor, values: Tensor, at: Tensor, count: Tensor | None) -> None:
        """Encode rows [n, G, D], the first `count` of them, at positions from `at` (int64 [1]) on."""
        self._store(keys, values, self._keys, self._values, 0, at - self.first, count)

    def attend(self, query: Tensor, committed: Tensor, causal: bool, scale: float) -> Tensor:
        """The block's queries float32 [B, H, D] over the context and over the block's own rows -> [B, H * D]."""
        if self._keys.codec.rotated:
            query = self._rotate(query)
        mixed = self._attend(query, self._keys, self._values, committed, self.first, self.window, causal, scale)
        if self._values.codec.rotated:
            mixed = self._rotate(mixed.unflatten(-1, (-1, query.shape[-1])), inverse=True).flatten(1)
        return mixed


class DeviceDraftContext:
    """All layers' rows. committed: int64 [1], how many tokens they hold; `length` is the host's copy."""

    def __init__(self, states: Sequence[DeviceDraftState], device: str) -> None:
        self.states = tuple(states)
        self.committed = torch.zeros(1, dtype=torch.int64, device=device)

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.states[0].rows.length

    def settle(self) -> None:
        """Tell the device what the host did to the rows."""
        self.committed.fill_(self.length)
        for state in self.states:
            state.first.fill_(state.rows.length - state.rows.held)

    def kept(self, count: int) -> None:
        """A round that stored `count` tokens more is noted on the host."""
        for state in self.states:
            state.rows.length += count

    def make_room(self, count: int) -> None:
        """Before a round that stores up to `count` rows: where they do not fit, what a window still needs moves up."""
        moved = [state.rows.make_room(count) for state in self.states]
        if any(moved):
            self.settle()
