"""What all layers of one pass share, worked out once per pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from draftwood.batch import ForwardInput, Nodes, depth_first
from draftwood.kernels.delta_rule import load_device_form
from draftwood.kernels.draft_tree import reference as tree


@dataclass(frozen=True)
class PrefillStep:
    """A prefill pass: T rows on granules from position `start`, the first `count` of them real.

    turn: complex64 [T, width/2], the rotary of every row.
    """

    start: int
    count: int
    turn: Tensor


@dataclass(frozen=True)
class HostNodes:
    """A tree's shape on the host: parents and depth per node; order: depth-first; chain: node i has parent i-1."""

    parents: list[int]
    depth: list[int]
    order: list[int]
    chain: bool

    @property
    def deepest(self) -> int:
        """Depth of the deepest node."""
        return max(self.depth)


class DecodeStep:
    """A decode pass of R nodes.

    committed: int64 [1] on the device, the tokens before it. parents: int64 [R]. turn: complex64 [R, width/2].
    """

    def __init__(self, inputs: ForwardInput, committed: Tensor, turn: Tensor) -> None:
        if inputs.parents is None:
            raise ValueError("a decode pass names its parents")
        self.committed, self.parents, self.turn = committed, inputs.parents, turn
        self._inputs = inputs

    @cached_property
    def host(self) -> HostNodes:
        """The tree for states that work through it on the host; reads it there."""
        parents: list[int] = self.parents.tolist()
        depth: list[int] = []
        for parent in parents:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        return HostNodes(parents, depth, depth_first(parents), parents == list(range(-1, len(parents) - 1)))

    @cached_property
    def nodes(self) -> Nodes:
        """The tree for states whose kernels read it."""
        if self._inputs.nodes is not None:
            return self._inputs.nodes
        rows = len(self.parents)
        depth = self._inputs.positions - self.committed
        paths = tree.ancestors(self.parents, depth, torch.full_like(self.committed, rows), rows - 1)
        return Nodes(depth, paths, tree.depth_first(paths).int())

    @cached_property
    def plan(self) -> Tensor:
        """The walk over the tree that the delta rule's kernels follow."""
        return load_device_form(str(self.parents.device.type)).plan_tree(self.parents, self.nodes.order)
