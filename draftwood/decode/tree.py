"""Draft trees: the candidates that one verify pass reads, and the shapes in which they are grown.

A tree shape is a function registered in `BUILDERS`, which says how its trees grow.  Growing (`kernels.draft_tree`)
reads no value on the host, so that a drafter can grow its tree inside a captured graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from draftwood.errors import UsageError
from draftwood.kernels.draft_tree import CAPACITY, Growth, reference
from draftwood.kernels.draft_tree.reference import assemble, select_nodes

MAX_NODES = CAPACITY
MAX_BUDGET = MAX_NODES - 1

ChainSeed = Literal["half", "full", "none"]


@dataclass(frozen=True, slots=True)
class HostTree:
    """A `DraftTree` as lists, each of length `count`, for tests and for the page that draws trees."""

    tokens: list[int]
    parents: list[int]
    depth: list[int]


@dataclass(slots=True)
class DraftTree:
    """Candidate continuations of a sequence, in tensors of fixed capacity MAX_NODES on the sequence's device.

    tokens   int64 [64]  token ids; node 0 is the pending token (decided, not yet in any cache)
    parents  int64 [64]  node index of the parent; -1 for node 0; a parent's index is lower than its child's
    depth    int64 [64]  edges to node 0
    count    int64 []    nodes in use, node 0 included; the other slots hold token 0, parent -1, depth 0
    expected float64 []  candidates that the drafter expects to be accepted: the sum of the path probabilities of its
                         nodes; 0 from a drafter without probabilities

    Siblings have distinct tokens.  The first child of a node is the likeliest one.
    """

    tokens: Tensor
    parents: Tensor
    depth: Tensor
    count: Tensor
    expected: Tensor

    @classmethod
    def empty(cls, device: torch.device | str) -> DraftTree:
        """A tree with no node in use, on `device`."""
        return cls(
            tokens=torch.zeros(MAX_NODES, dtype=torch.int64, device=device),
            parents=torch.full((MAX_NODES,), -1, dtype=torch.int64, device=device),
            depth=torch.zeros(MAX_NODES, dtype=torch.int64, device=device),
            count=torch.zeros((), dtype=torch.int64, device=device),
            expected=torch.zeros((), dtype=torch.float64, device=device),
        )

    def to_host(self) -> HostTree:
        """The nodes in use, as lists; waits for the device."""
        count = int(self.count)
        return HostTree(
            tokens=self.tokens[:count].tolist(),
            parents=self.parents[:count].tolist(),
            depth=self.depth[:count].tolist(),
        )


def check_budget(budget: int) -> None:
    """Raise UsageError unless `budget`, the candidate nodes of a tree without its root, is in 1..63."""
    if isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= MAX_BUDGET:
        raise UsageError(
            f"The tree budget is {budget!r}, but must be a whole number from 1 to {MAX_BUDGET} "
            "(candidate nodes without the root); give a budget in that range."
        )


@dataclass(frozen=True, slots=True)
class TreeShape:
    """How a drafter grows its tree.

    kind         a name in `BUILDERS`: root_only (plain decoding), chain (DFlash) or best_first (DDTree)
    budget       candidate nodes without the root, 1..63
    candidates   tokens considered per depth, >= 1
    temperature  > 0; the drafter divides its logits by it before it normalises them to the log-probabilities
                 that order the tree (below 1 deeper, above 1 bushier); it never changes the output
    chain_seed   how much of the budget the greedy chain claims first: half (at least one node), full or none
    depth        deepest candidate, >= 1; None for as deep as drafter and budget go
    floor        0 to 1; a node whose path is less likely than that, by the drafter's own probabilities, is left out

    Raises UsageError where a value is outside these limits.
    """

    kind: str
    budget: int
    candidates: int = 8
    temperature: float = 1.0
    chain_seed: ChainSeed = "half"
    depth: int | None = None
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in BUILDERS:
            known = ", ".join(BUILDERS)
            raise UsageError(f"The tree shape is {self.kind!r}, but must be one of {known}; choose one.")
        check_budget(self.budget)
        if self.candidates < 1:
            raise UsageError(f"The candidates per depth are {self.candidates!r}, but must be at least 1; give more.")
        if not 0 < self.temperature < float("inf"):
            raise UsageError(
                f"The tree temperature is {self.temperature!r}, but must be finite and above 0; give another."
            )
        if self.chain_seed not in SEED_LENGTHS:
            known = ", ".join(SEED_LENGTHS)
            raise UsageError(f"The chain seed is {self.chain_seed!r}, but must be one of {known}; choose one.")
        if self.depth is not None and self.depth < 1:
            raise UsageError(f"The tree's depth is {self.depth!r}, but must be at least 1; give more.")
        if not 0 <= self.floor <= 1:
            raise UsageError(f"The tree's floor is {self.floor!r}, but must be a probability; give one from 0 to 1.")

    @property
    def branching(self) -> bool:
        """Whether a node may have several children."""
        return self.kind == "best_first"

    @property
    def deepest(self) -> int:
        """The deepest candidate that it can have."""
        return self.budget if self.depth is None else min(self.budget, self.depth)

    @property
    def growth(self) -> Growth:
        """How the kernels grow it."""
        return BUILDERS[self.kind](self)

    @property
    def lowest_score(self) -> float:
        """The logarithm of `floor`; no score is below that of 0."""
        return math.log(self.floor) if self.floor else -math.inf


SEED_LENGTHS: dict[str, Callable[[int], int]] = {
    "half": lambda budget: max(1, budget // 2),
    "full": lambda budget: budget,
    "none": lambda budget: 0,
}


def build_tree(pending: Tensor, tokens: Tensor, log_probs: Tensor, shape: TreeShape) -> DraftTree:
    """Grow a tree of `shape` from independent distributions per depth.

    pending    int64 [], the token of node 0
    tokens     int64 [depths, K], row d - 1 the candidates at depth d, the likeliest first, all different
    log_probs  float32 [depths, K], their log-probabilities, descending in each row; -inf is never chosen
    Returns a tree on the device of `tokens`.  K may be less than `shape.candidates`; a larger K is cut to it.
    """
    return DraftTree(*select_nodes(pending, tokens, log_probs, shape.growth))


def _root_only(shape: TreeShape) -> Growth:
    return Growth(shape.budget, shape.candidates, depth=0)


def _chain(shape: TreeShape) -> Growth:
    """The likeliest token of each depth."""
    return Growth(shape.budget, 1, shape.deepest, lowest=shape.lowest_score)


def _best_first(shape: TreeShape) -> Growth:
    """The likeliest paths, after the chain seed."""
    seed = SEED_LENGTHS[shape.chain_seed](shape.budget)
    return Growth(shape.budget, shape.candidates, shape.deepest, seed, shape.lowest_score)


BUILDERS: dict[str, Callable[[TreeShape], Growth]] = {
    "root_only": _root_only,
    "chain": _chain,
    "best_first": _best_first,
}

ROOT_ONLY = TreeShape("root_only", budget=1)
"""The shape of plain decoding; it has no candidates, whatever its budget."""


def merge_paths(pending: Tensor, paths: Sequence[Sequence[int]], budget: int) -> DraftTree:
    """Merge several continuations of the pending token (int64 []) into one tree, on the device of `pending`.

    Shared beginnings become shared nodes.  Earlier paths come first and may use up the budget (1..63 nodes).
    Runs on the host.  Raises UsageError for another budget.
    """
    check_budget(budget)
    tokens: list[int] = []
    parents: list[int] = []
    depth: list[int] = []
    children: dict[tuple[int, int], int] = {}
    for path in paths:
        node = 0
        for step, token in enumerate(path, start=1):
            child = children.get((node, token))
            if child is None:
                if len(tokens) == budget:
                    break
                tokens.append(token)
                parents.append(node)
                depth.append(step)
                child = children[node, token] = len(tokens)
            node = child
    columns = torch.tensor([tokens, parents, depth], dtype=torch.int64, device=pending.device)
    alive = torch.ones(len(tokens), dtype=torch.bool, device=pending.device)
    nowhere = torch.full((len(tokens),), -torch.inf, device=pending.device)
    return DraftTree(*assemble(pending, columns[0], columns[1], columns[2], alive, nowhere))


def ancestors(tree: DraftTree, max_depth: int) -> Tensor:
    """For each node its path from the root: int64 [64, max_depth + 1].

    Row i, column d is the index of node i's ancestor at depth d, i itself at its own depth, -1 beyond; rows
    of unused slots are all -1.  `max_depth` is at least the depth of the deepest node.
    """
    return reference.ancestors(tree.parents, tree.depth, tree.count, max_depth)
