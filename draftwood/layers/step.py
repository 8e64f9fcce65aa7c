"""What all layers of one pass share, worked out once per pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from draftwood.batch import ForwardInput, depth_first


@dataclass(frozen=True)
class PrefillStep:
    """A prefill pass: T rows on granules from position `start`, the first `count` of them real.

    turn: complex64 [T, width/2], the rotary of every row.
    """

    start: int
    count: int
    turn: Tensor


@dataclass(frozen=True)
class DecodeStep:
    """A decode pass of R nodes after `committed` tokens.

    parents, depth: per node; order: depth-first; chain: node i has parent i-1. turn: complex64 [R, width/2].
    """

    committed: int
    parents: list[int]
    depth: list[int]
    order: list[int]
    chain: bool
    turn: Tensor

    @classmethod
    def of(cls, inputs: ForwardInput, committed: int, turn: Tensor) -> DecodeStep:
        """Read the tree's shape; its parents are the one thing the reference kernels need on the host."""
        if inputs.parents is None:
            raise ValueError("a decode pass names its parents")
        parents: list[int] = inputs.parents.tolist()
        depth: list[int] = []
        for parent in parents:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        chain = parents == list(range(-1, len(parents) - 1))
        return cls(committed, parents, depth, depth_first(parents), chain, turn)

    @property
    def deepest(self) -> int:
        """Depth of the deepest node."""
        return max(self.depth)
