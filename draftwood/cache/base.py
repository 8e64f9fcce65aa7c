"""The state one layer keeps for one sequence, and the storage of one axis (K or V) of a KV cache.

Letters: C committed tokens, R nodes of a decode pass, T tokens of a prefill pass, G KV heads, D head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from draftwood.batch import MAX_ROWS
from draftwood.cache.buffers import plane_rows

Keep = Callable[[Tensor, Tensor, Tensor], None]
"""keep(path int64 [64], count int64 [], committed int64 [1]): the nodes path[:count] stay; the host reads nothing."""


class LayerState(ABC):
    """What a layer remembers of a sequence (DESIGN section 4).

    A decode pass stages its nodes through the layer's own method, then exactly one `commit` keeps the accepted ones
    and drops the rest; an aborted pass never commits and leaves nothing to undo.
    """

    @abstractmethod
    def commit(self, path: Tensor, count: int) -> None:
        """Keep the staged nodes `path[:count]` (int64, node indices along one root-to-node path); drop the others."""

    @classmethod
    def keep_together(cls, states: Sequence[Any]) -> Keep | None:
        """What keeps nodes in all these states of one class without the host; None where `commit` must."""
        return None

    length: int

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Go back to `length` committed tokens; a ValueError where the state cannot (recurrent ones go by snapshot)."""

    @abstractmethod
    def snapshot(self) -> Any:
        """A copy of the state that `restore` accepts."""

    @abstractmethod
    def restore(self, snapshot: Any) -> None:
        """Return to a snapshot of this state."""

    def mark(self) -> Any:
        """What `rewind` needs to come back here after more tokens; less than a snapshot where rows stay in place."""
        return self.snapshot()

    def rewind(self, mark: Any) -> None:
        """Return to a mark, from a sequence that has only grown since."""
        self.restore(mark)

    @abstractmethod
    def fill_random(self, length: int, seed: int) -> None:
        """From nothing to `length` tokens that nobody read: normally distributed values, for benchmarks."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the long-lived buffers."""


class Plane(ABC):
    """Rows of K or of V of one layer in one KV type: `capacity` committed rows and room for `MAX_ROWS` staged ones.

    Rows are encoded when they are written, staged or committed alike, and decoded when they are read, so an attended
    row never depends on which of the two it was (DESIGN law 1). A type may keep its rows rotated, and hands them out
    like that: rotating the query once (`enter`), or what came of the values (`leave`), is cheaper than every row.
    """

    def __init__(self, heads: int, head_dim: int, capacity: int, device: str) -> None:
        self.heads, self.head_dim, self.capacity, self.device = heads, head_dim, capacity, device

    @property
    def rows(self) -> int:
        """Rows of the buffers: committed ones, then scratch for a pass, then the staging area in node order."""
        return plane_rows(self.capacity)

    @property
    def staging(self) -> int:
        """First row of the staging area."""
        return self.capacity + MAX_ROWS

    @abstractmethod
    def write(self, rows: Tensor, at: int) -> None:
        """Encode float32 `rows` [n, G, D] into rows at .. at+n-1, rotated where the type rotates."""

    @abstractmethod
    def move(self, source: Tensor, at: int) -> None:
        """Copy the encoded rows `source` (int64 [n], row numbers) to rows at .. at+n-1."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop-1 as they are kept, decoded, float32 [G, stop-start, D]; may be a view of the storage."""

    def enter(self, rows: Tensor) -> Tensor:
        """Head vectors float32 [N, H, D] or [N, H * D] in the space of the kept rows."""
        return rows

    def leave(self, rows: Tensor) -> Tensor:
        """The inverse of `enter`."""
        return rows

    @abstractmethod
    def buffers(self) -> dict[str, Tensor]:
        """The tensors that hold the rows, by name; every one has its rows on axis 1."""

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(t.nbytes for t in self.buffers().values())
