"""The KV cache of one attention layer: a plane for K and one for V.

Committed rows lie at their logical positions, and a row's logical position is where the attention looks for it: a
staged node takes the position it will have once committed, C + depth. Nodes that form a chain are therefore encoded
in place. Nodes of a branching tree are encoded in a staging area in node order; the attention lays each
root-to-node path out at C .. C+depth as it goes (`attend`), and `commit` moves the accepted rows there for good.
Keys keep the rotary of their logical position, so nothing is rotated again.

A KV type may keep its rows rotated (`Plane.enter`). Scores are the same between a rotated query and rotated keys, and a
mix of rotated values is the rotated mix; so a pass rotates its queries once and what the attention returns once, and
the rows of the cache never.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from draftwood.batch import PASS_TOKENS
from draftwood.cache.base import LayerState
from draftwood.cache.registry import check_width, load_plane
from draftwood.cache.spec import KVSpec
from draftwood.cache.step import DecodeStep, PrefillStep
from draftwood.kernels.attention import attend_granules, attend_nodes


class KVState(LayerState):
    """K and V rows of one layer and sequence."""

    def __init__(self, spec: tuple[KVSpec, KVSpec], heads: int, head_dim: int, capacity: int, device: str) -> None:
        check_width(spec, head_dim)
        self.keys, self.values = (load_plane(kind)(heads, head_dim, capacity, device) for kind in spec)
        self.length = 0
        self._in_place = True

    @property
    def held(self) -> int:
        """Committed rows in the buffers."""
        return self.length

    def decode(self, q: Tensor, k: Tensor, v: Tensor, step: DecodeStep, scale: float) -> Tensor:
        """A decode pass: stages k, v [R, G, D] and attends q float32 [R, H, D] over each node's path -> [R, H, D]."""
        tree = step.host
        self.stage(k, v, in_place=tree.chain)
        keys, values = self.read(0, self.length + (len(q) if tree.chain else tree.deepest + 1))
        staged = None if tree.chain else self.staged(len(q))
        mixed = attend_nodes(self.enter(q), keys, values, staged, self.length, tree.order, tree.depth, scale)
        return self.leave(mixed)

    def prefill(self, q: Tensor, k: Tensor, v: Tensor, step: PrefillStep, scale: float) -> Tensor:
        """A prefill pass: commits k, v [T, G, D] and attends q float32 [T, H, D] over what is before -> [T, H, D]."""
        self.append(k, v, step.count)
        keys, values = self.read(0, step.start + len(q))
        return self.leave(attend_granules(self.enter(q), keys, values, step.start, scale))

    def append(self, keys: Tensor, values: Tensor, count: int) -> None:
        """Prefill: encode rows [T, G, D] after the committed ones and commit the first `count` of them."""
        self._write(keys, values, self.length)
        self.length += count

    def stage(self, keys: Tensor, values: Tensor, in_place: bool) -> None:
        """Encode a decode pass's rows [R, G, D]; `in_place`: the nodes form a chain, row i at depth i."""
        self._write(keys, values, self.length if in_place else self.keys.staging)
        self._in_place = in_place

    def _write(self, keys: Tensor, values: Tensor, at: int) -> None:
        self.keys.write(keys, at)
        self.values.write(values, at)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """K and V at positions start .. stop-1 as their types keep them, decoded: two float32 [G, stop-start, D]."""
        return self.keys.read(start, stop), self.values.read(start, stop)

    def staged(self, count: int) -> tuple[Tensor, Tensor]:
        """The same of the staged rows of a branching tree in node order: two float32 [G, count, D]."""
        at = self.keys.staging
        return self.keys.read(at, at + count), self.values.read(at, at + count)

    def enter(self, query: Tensor) -> Tensor:
        """Queries float32 [R, H, D] as the kept keys are to be asked."""
        return self.keys.enter(query)

    def leave(self, mixed: Tensor) -> Tensor:
        """A mix of kept values, float32 [R, H, D] or [R, H * D], as one of the values that were given."""
        return self.values.leave(mixed)

    def make_room(self, count: int) -> bool:
        """Before kernels write `count` rows behind the committed ones: whether those had to move.

        Here the buffers have room for a pass behind the capacity.
        """
        return False

    def commit(self, path: Tensor, count: int) -> None:
        """Keep the nodes `path[:count]`."""
        if not self._in_place:
            source = path[:count] + self.keys.staging
            self.keys.move(source, self.length)
            self.values.move(source, self.length)
        self.length += count

    def truncate(self, length: int) -> None:
        """Drop the rows from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} rows to {length}")
        self.length = length

    def snapshot(self) -> Any:
        """A copy of the committed rows."""
        rows = {
            axis: {name: t[:, : self.held].clone() for name, t in plane.buffers().items()}
            for axis, plane in (("keys", self.keys), ("values", self.values))
        }
        return self.length, rows

    def restore(self, snapshot: Any) -> None:
        """Return to a snapshot."""
        self.length, rows = snapshot
        for axis, plane in (("keys", self.keys), ("values", self.values)):
            for name, buffer in plane.buffers().items():
                buffer[:, : self.held] = rows[axis][name]

    def mark(self) -> Any:
        """The length: what is committed later lies behind it."""
        return self.length

    def rewind(self, mark: Any) -> None:
        """Return to a mark."""
        self.truncate(mark)

    def fill_random(self, length: int, seed: int) -> None:
        """Append so many random rows to an empty cache, which encodes them as it would any others."""
        plane = self.keys
        generator = torch.Generator(plane.device).manual_seed(seed)
        while self.length < length:
            count = min(PASS_TOKENS, length - self.length)
            keys, values = torch.randn(
                2, count, plane.heads, plane.head_dim, generator=generator, device=plane.device
            ).unbind()
            self.append(keys, values, count)

    @property
    def nbytes(self) -> int:
        """Bytes of both planes."""
        return self.keys.nbytes + self.values.nbytes


def poison(state: KVState) -> None:
    """Fill every buffer with NaN (codes with 127), so that a test sees any row that was read before it was written."""
    for plane in (state.keys, state.values):
        for buffer in plane.buffers().values():
            buffer.fill_(torch.nan if buffer.dtype.is_floating_point else 127)
