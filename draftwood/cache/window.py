"""The KV cache of a layer whose rows see back a window, and no further: its memory does not grow with the context.

Positions are those of the whole sequence, as in `KVState`. The buffers hold one run of rows, from `first` on, in order;
when it reaches their end, the last `window + SPARE` rows move to the front. So what is read lies as it would in a cache
of all rows, and a row is moved at most once for every SPARE new ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from draftwood.batch import MAX_ROWS
from draftwood.cache.kv import KVState
from draftwood.cache.spec import KVSpec

SPARE = MAX_ROWS // 2
"""Rows kept beyond the window, so that a sequence can go back by as many and still see a whole window."""


class WindowedKVState(KVState):
    """K and V of the last rows of one layer and sequence.

    Nodes of a decode pass are staged in place, as a chain: the layers of a draft have windows, those of a target not.
    """

    def __init__(self, kv: tuple[KVSpec, KVSpec], heads: int, head_dim: int, window: int, device: str) -> None:
        super().__init__(kv, heads, head_dim, window, device)
        self.window = window
        self.first = 0

    @property
    def held(self) -> int:
        """Committed rows in the buffers."""
        return self.length - self.first

    def append(self, keys: Tensor, values: Tensor, count: int) -> None:
        """Encode and commit the first `count` rows [T, G, D]; of more than the buffers keep, the last ones."""
        skipped = self._drop_for(count)
        self._write(keys[skipped:count], values[skipped:count], self.length + skipped - self.first)
        self.length += count

    def stage(self, keys: Tensor, values: Tensor, in_place: bool) -> None:
        """Encode a pass's rows [R, G, D] after the committed ones."""
        if not in_place:
            raise ValueError("a cache with a window stages chains only")
        self._drop_for(0)
        self._write(keys, values, self.held)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KVState; a ValueError for rows that are no longer here."""
        if start < self.first:
            raise ValueError(f"row {start} was dropped, the first one here is {self.first}")
        return super().read(start - self.first, stop - self.first)

    def truncate(self, length: int) -> None:
        """Go back to `length` rows: to none, or to where the window before is still here.

        That is SPARE rows behind the longest that the sequence was at least; beyond them a ValueError.
        """
        if length and self.first and length + 1 - self.window < self.first:
            raise ValueError(f"cannot truncate {self.length} rows to {length}: the rows from {self.first} on are here")
        super().truncate(length)
        if not length:
            self.first = 0

    def snapshot(self) -> Any:
        """A copy of the rows that are here."""
        return self.first, super().snapshot()

    def restore(self, snapshot: Any) -> None:
        """Return to a snapshot."""
        self.first, rows = snapshot
        super().restore(rows)

    def mark(self) -> Any:
        """A snapshot, as later rows take the place of these."""
        return self.snapshot()

    def rewind(self, mark: Any) -> None:
        """Return to a mark."""
        self.restore(mark)

    def make_room(self, count: int) -> bool:
        """See KVState; the staging area may be written too."""
        if self.held + count <= self.keys.rows:
            return False
        self._keep_last(min(self.held, self.window + SPARE))
        return True

    def _drop_for(self, count: int) -> int:
        """Make room for `count` more committed rows and a pass; the number of new rows that need not be kept."""
        if self.held + count <= self.window + MAX_ROWS:
            return 0
        self._keep_last(max(0, min(self.held, self.window + SPARE - count)))
        skipped = max(0, count - self.window - SPARE)
        self.first += skipped
        return skipped

    def _keep_last(self, kept: int) -> None:
        """Move the last rows to the front."""
        source = torch.arange(self.held - kept, self.held, device=self.keys.device)
        self.keys.move(source, 0)
        self.values.move(source, 0)
        self.first = self.length - kept
