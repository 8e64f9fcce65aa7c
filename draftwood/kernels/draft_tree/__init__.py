"""The draft tree on the device: `grow` makes it in one launch, `walk` follows the target through it in another.

Neither reads a value on the host, so that both can be captured in a graph. Everything a round needs to know of the tree
lies in tensors of CAPACITY slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from draftwood.kernels._select import load_form

__all__ = [
    "CAPACITY",
    "HEADER",
    "TURN",
    "Assumed",
    "Grow",
    "Grown",
    "Growth",
    "Walk",
    "Walked",
    "load_grow",
    "load_walk",
]

CAPACITY = 64
"""Slots of a tree; its root takes one."""

HEADER = 4
"""Numbers of a round's result before the tokens of its path."""

TURN = 2**30
"""Parts of a node that the fraction of an assumed acceptance is counted in."""


@dataclass(frozen=True, slots=True)
class Growth:
    """The static part of a tree's growth.

    budget      nodes without the root, 1 to 63
    candidates  tokens considered per depth; 1 grows a chain
    depth       deepest node; 0 leaves the root alone
    seed        how many nodes the greedy chain claims first
    lowest      log-probability of the least likely path that may enter
    """

    budget: int
    candidates: int
    depth: int
    seed: int = 0
    lowest: float = -math.inf


@dataclass(slots=True)
class Grown:
    """A tree in its slots, nodes by depth, then by falling score, among equals by parent, then by rank.

    tokens     int64 [64]      0 in an unused slot
    parents    int64 [64]      -1 for the root and in an unused slot
    depth      int64 [64]      edges to the root; 0 in an unused slot
    count      int64 []        nodes, the root included; the first slots hold them
    expected   float64 []      sum of the path probabilities of all nodes but the root
    positions  int64 [64]      committed length + depth
    ancestors  int32 [64, 64]  row i, column d: the node at depth d on i's path, i itself included; -1 beyond
    order      int32 [64]      slots depth first, children by index; unused ones last, each a root of its own
    """

    tokens: Tensor
    parents: Tensor
    depth: Tensor
    count: Tensor
    expected: Tensor
    positions: Tensor
    ancestors: Tensor
    order: Tensor


class Grow(Protocol):
    """Grows a tree from independent distributions per depth."""

    def __call__(
        self,
        pending: Tensor,
        tokens: Tensor,
        log_probs: Tensor,
        committed: Tensor,
        growth: Growth,
        normaliser: Tensor | None = None,
    ) -> Grown:
        """The likeliest nodes, a node's score being the float32 sum of log-probabilities along its path from the top.

        pending: int64 [], the root's token. tokens: int64 [depths, K], those of a depth all different. log_probs:
        float32 [depths, K], taken as at most 0, NaN and -inf as impossible. normaliser: float32 [depths], taken off
        log_probs (which may then be the values of `top_k`). committed: int64 [1], the sequence's length. Depths and
        ranks beyond `growth` are not looked at. On a GPU, ValueError for a budget outside 1..63 or more than 64
        candidates.
        """


@dataclass(frozen=True, slots=True)
class Assumed:
    """For benchmarks without a trained draft: acceptance lengths spread evenly around a mean instead of found.

    mean     float64 [1], nodes kept per round on average, the root included; n rounds in a row keep n times as many, to
             less than one, and the first n from counter 0 to a half
    counter  int64 [1], rounds so far, advanced by each walk; a round's length depends on it and the mean alone
    """

    mean: Tensor
    counter: Tensor


@dataclass(frozen=True, slots=True)
class Walked:
    """The outcome of a round, on the device.

    path        int64 [64]  node indices from the root down; -1 after the last one
    count       int64 []    nodes on the path, the root included
    next_token  int64 []    the target's own token after the last node
    tokens      int64 [64]  the path's tokens; -1 after the last one
    row         int64 [68]  all that the host reads of a round: count, depth of the tree, next_token, nodes of the tree
                            with its root, then `tokens`
    """

    path: Tensor
    count: Tensor
    next_token: Tensor
    tokens: Tensor
    row: Tensor


class Walk(Protocol):
    """Follows the target through a tree and moves the sequence on."""

    def __call__(
        self,
        tokens: Tensor,
        parents: Tensor,
        depth: Tensor,
        count: Tensor,
        target: Tensor,
        committed: Tensor,
        pending: Tensor,
        text: Tensor,
        assumed: Assumed | None = None,
    ) -> Walked:
        """A node is accepted if its parent is and its token is the one the target drew after the parent.

        tokens, parents, depth, count: as in `Grown`. target: int64 [64], what the target draws after each node. In
        place: committed (int64 [1]) grows by the path, pending (int64 []) becomes the next token, and the path's tokens
        enter text (int64 [length + 64], length >= committed) from `committed` on. With `assumed`, the path is the first
        nodes of the greedy chain (the first child at every depth), as many as assumed or as there are; the next token
        stays the target's own after the last of them.
        """


def load_grow(device: str) -> Grow:
    """The growth for a device ("cpu", "cuda")."""
    function: Grow = load_form(__name__, "grow", device)
    return function


def load_walk(device: str) -> Walk:
    """The walk for a device ("cpu", "cuda")."""
    function: Walk = load_form(__name__, "walk", device)
    return function
