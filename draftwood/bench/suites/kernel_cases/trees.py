"""Draft trees: growth and walk, and the tree of a pass that other kernels take."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import cache, partial

import torch
from torch import Tensor

from draftwood.bench.suites.kernel_cases.base import CANDIDATES, Case, Kernel, Setting, Work, beyond, unequal
from draftwood.kernels.draft_tree import CAPACITY, Grown, Growth, load_grow, load_walk

DEPTH, ACCEPTED = 15, 6
"""Of a draft of 16 tokens; nodes of a walk, with the root."""


def _candidates(seed: int) -> tuple[Tensor, Tensor]:
    """Tokens and log-probabilities of a draft, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.log_softmax(torch.randn(DEPTH, 1000, generator=generator) * 2, 1)
    top = values.topk(CANDIDATES, 1)
    return top.indices, top.values.contiguous()


def _growth(budget: int) -> Growth:
    return Growth(max(budget, 1), CANDIDATES, min(DEPTH, budget), min(DEPTH, budget // 2))


@cache
def tree_of(rows: int) -> Grown:
    """The tree of a pass of so many rows, on the CPU: as a draft grows it."""
    return load_grow("cpu")(torch.tensor(0), *_candidates(0), torch.zeros(1, dtype=torch.int64), _growth(rows - 1))


def deepest(rows: int) -> list[int]:
    """The path to the tree's last node, which is one of its deepest."""
    tree = tree_of(rows)
    return [int(node) for node in tree.ancestors[rows - 1] if node >= 0]


def grow(setting: Setting, budget: int) -> Case:
    """A tree of so many nodes besides the root, from the candidates of a draft."""

    def make() -> Kernel:
        from draftwood.kernels.draft_tree import triton

        growth, device = _growth(budget), setting.device
        pending, committed = torch.tensor(5), torch.tensor([100])

        def gate() -> float:
            tokens, scores = _candidates(1)
            made = triton.grow(pending.to(device), tokens.to(device), scores.to(device), committed.to(device), growth)
            expected = load_grow("cpu")(pending, tokens, scores, committed, growth)
            names = [field.name for field in fields(Grown) if field.name != "expected"]
            errors = [unequal(getattr(made, name).cpu(), getattr(expected, name)) for name in names]
            return max(*errors, beyond(made.expected.cpu(), expected.expected, 1e-5, 1e-6))

        def work(rows: int) -> Work:
            grow = partial(triton.grow, pending.to(device), committed=committed.to(device), growth=growth)
            inputs = [[x.to(device) for x in _candidates(seed)] for seed in range(setting.calls)]
            calls = [partial(grow, *both) for both in inputs]
            written = sum(getattr(tree_of(1), field.name).nbytes for field in fields(Grown))
            return Work(calls, DEPTH * CANDIDATES * 12 + written)

        return Kernel(gate, work)

    return Case("draft_tree.grow", f"{budget} of {DEPTH} x {CANDIDATES}", "candidates, tree", make, "round")


def walk(setting: Setting, budget: int) -> Case:
    """The target followed through such a tree."""

    def make() -> Kernel:
        from draftwood.kernels.draft_tree import triton

        tree, device = tree_of(budget + 1), setting.device
        target = torch.full((CAPACITY,), -7)
        node = 0
        for _ in range(ACCEPTED - 1):
            child = int((tree.parents == node).nonzero()[0])
            target[node] = tree.tokens[child]
            node = child
        given = tree.tokens, tree.parents, tree.depth, tree.count, target

        def arguments(where: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
            one, two, three, four, five = (x.to(where, copy=True) for x in given)
            return one, two, three, four, five

        def state(where: str) -> tuple[Tensor, Tensor, Tensor]:
            text = torch.zeros(1024 * CAPACITY, dtype=torch.int64, device=where)
            return torch.zeros(1, dtype=torch.int64, device=where), torch.tensor(9, device=where), text

        def gate() -> float:
            mine, other = state(device), state("cpu")
            made = triton.walk(*arguments(device), *mine)
            expected = load_walk("cpu")(*arguments("cpu"), *other)
            pairs = zip((made.path, made.row, *mine), (expected.path, expected.row, *other), strict=True)
            kept = 0.0 if int(expected.count) == ACCEPTED else math.inf
            return max(kept, *(unequal(one.cpu(), two) for one, two in pairs))

        def work(rows: int) -> Work:
            committed, pending, text = state(device)
            walk = partial(triton.walk, committed=committed, pending=pending, text=text)
            calls = [partial(walk, *arguments(device)) for _ in range(setting.calls)]
            return Work(calls, sum(x.nbytes for x in given) + CAPACITY * 32, reset=committed.zero_)

        return Kernel(gate, work)

    return Case("draft_tree.walk", f"{ACCEPTED} of {budget}", "tree, draws, results", make, "round")
