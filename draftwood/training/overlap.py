"""Whether two texts share a run of tokens: how training text is kept clear of the benchmarks.

Runs are compared by 64-bit hashes alone. Equal runs have equal hashes, so nothing that is shared is missed; a chance
hit (below 1e-6 for a hundred million runs against a hundred thousand) only drops one sequence too many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def run_hashes(ids: npt.ArrayLike, length: int) -> npt.NDArray[np.uint64]:
    """Hash of every run of `length` tokens: whole numbers [n] -> uint64 [max(0, n - length + 1)].

    Ids are scattered over 64 bits first, so that the small differences of ids cannot cancel in the polynomial.
    """
    scattered = scatter(np.asarray(ids, dtype=np.int64).astype(np.uint64))
    count = max(0, len(scattered) - length + 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(length):
        hashes *= _FACTOR
        hashes += scattered[offset : offset + count]
    return hashes


class RunIndex:
    """All runs of some texts. length: tokens of a run."""

    def __init__(self, texts_as_ids: Iterable[Sequence[int]], length: int = 13) -> None:
        self.length = length
        runs = [run_hashes(ids, length) for ids in texts_as_ids]
        self._runs = np.unique(np.concatenate(runs)) if runs else np.zeros(0, np.uint64)

    def __len__(self) -> int:
        """Number of different runs."""
        return len(self._runs)

    def shares_run(self, ids: npt.ArrayLike) -> bool:
        """Whether a text has a run of the index; a text shorter than a run has none."""
        if not len(self._runs):
            return False
        hashes = run_hashes(ids, self.length)
        places = np.minimum(np.searchsorted(self._runs, hashes), len(self._runs) - 1)
        return bool((self._runs[places] == hashes).any())


def scatter(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijection of 64-bit numbers that spreads neighbours."""
    values = values + _FACTOR
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))
