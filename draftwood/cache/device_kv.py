"""The KV cache of one attention layer on a GPU: rows are stored, attended and kept by kernels that read lengths and
trees on the device, so that a round can be captured in a graph.

Committed rows lie at their logical positions, as in `KVState`. The nodes of a decode pass are always staged in node
order, chain or tree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draftwood.cache.base import Keep
from draftwood.cache.codecs import kept_rows
from draftwood.cache.kv import KVState
from draftwood.cache.spec import KVSpec
from draftwood.cache.step import DecodeStep, PrefillStep
from draftwood.cache.window import WindowedKVState
from draftwood.kernels.attention import load_attend_granules, load_attend_tree
from draftwood.kernels.kv_store import load_commit_rows, load_rotate_rows, load_store_rows, row_table


class StoredKVState(KVState):
    """K and V rows of one layer and sequence that a kernel encodes, in place."""

    def __init__(self, spec: tuple[KVSpec, KVSpec], heads: int, head_dim: int, capacity: int, device: str) -> None:
        super().__init__(spec, heads, head_dim, capacity, device)
        self.key_rows, self.value_rows = kept_rows(spec[0], self.keys), kept_rows(spec[1], self.values)
        self._store = load_store_rows(device)

    def _write(self, keys: Tensor, values: Tensor, at: int) -> None:
        if len(keys):
            self._store(keys, values, self.key_rows, self.value_rows, at)


class StoredWindowedKVState(StoredKVState, WindowedKVState):
    """The same for a layer with a window."""


class DeviceKVState(StoredKVState):
    """K and V rows of one layer and sequence; `length` is the host's copy of the committed count."""

    def __init__(self, spec: tuple[KVSpec, KVSpec], heads: int, head_dim: int, capacity: int, device: str) -> None:
        super().__init__(spec, heads, head_dim, capacity, device)
        self._rotate = load_rotate_rows(device)
        self._attend_tree, self._attend_granules = load_attend_tree(device), load_attend_granules(device)

    def decode(self, q: Tensor, k: Tensor, v: Tensor, step: DecodeStep, scale: float) -> Tensor:
        """See KVState."""
        staging = self.keys.staging
        self._store(k, v, self.key_rows, self.value_rows, staging)
        mixed = self._attend_tree(
            self.enter(q), self.key_rows, self.value_rows, step.committed, step.nodes.depth, step.nodes.ancestors,
            staging, scale,
        )  # fmt: skip
        return self.leave(mixed)

    def prefill(self, q: Tensor, k: Tensor, v: Tensor, step: PrefillStep, scale: float) -> Tensor:
        """See KVState."""
        self._store(k, v, self.key_rows, self.value_rows, step.start)
        self.length += step.count
        return self.leave(self._attend_granules(self.enter(q), self.key_rows, self.value_rows, step.start, scale))

    def enter(self, query: Tensor) -> Tensor:
        """See KVState."""
        return self._rotate(query) if self.key_rows.codec.rotated else query

    def leave(self, mixed: Tensor) -> Tensor:
        """See KVState."""
        return self._rotate(mixed, inverse=True) if self.value_rows.codec.rotated else mixed

    def commit(self, path: Tensor, count: int) -> None:
        """Keep the nodes `path[:count]`."""
        device = path.device
        keep = self.keep_together([self])
        keep(path, torch.tensor(count, device=device), torch.tensor([self.length], device=device))
        self.length += count

    @classmethod
    def keep_together(cls, states: Sequence[KVState]) -> Keep:
        """One launch for the layers of a sequence."""
        planes = [plane for state in states for plane in (state.keys, state.values)]
        table = row_table([buffer for plane in planes for buffer in plane.buffers().values()])
        commit, staging = load_commit_rows(planes[0].device), planes[0].staging

        def keep(path: Tensor, count: Tensor, committed: Tensor) -> None:
            commit(table, path, count, committed, staging)

        return keep
