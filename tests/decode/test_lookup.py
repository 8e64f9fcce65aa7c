"""The look-up drafter: what it proposes for which context."""

from __future__ import annotations

import torch

from draftwood.decode.drafters.lookup import LookupDrafter
from draftwood.decode.tree import TreeShape


def proposed(context: list[int], pending: int, shape: TreeShape) -> tuple[list[int], list[int]]:
    drafter = LookupDrafter()
    drafter.start(torch.tensor(context))
    drafter.observe(torch.tensor(context[:3]), None)
    drafter.observe(torch.tensor(context[3:]), None)
    tree = drafter.propose(torch.tensor(pending), shape).to_host()
    return tree.tokens, tree.parents


def test_a_chain_follows_the_longest_match() -> None:
    context = [1, 2, 3, 50, 51, 52, 53, 9, 8, 3, 60, 61, 7, 1, 2]
    assert proposed(context, 3, TreeShape("chain", 4))[0] == [3, 50, 51, 52]


def test_longer_matches_are_followed_further() -> None:
    context = [*range(20), 99, 0]
    short, _ = proposed(context, 1, TreeShape("chain", 15))
    long, _ = proposed([*range(20), 99, 0, 1, 2, 3], 4, TreeShape("chain", 15))
    assert short == [1, 2, 3]
    assert long == [4, *range(5, 10)]


def test_depth_ends_a_continuation() -> None:
    context = [1, 2, 3, 50, 51, 52, 53, 9, 8, 3, 60, 61, 7, 1, 2]
    assert proposed(context, 3, TreeShape("chain", 4, depth=2))[0] == [3, 50, 51]


def test_a_tree_merges_several_matches() -> None:
    context = [1, 2, 3, 4, 5, 90, 1, 2, 3, 7, 8, 91, 1, 2]
    tokens, parents = proposed(context, 3, TreeShape("best_first", 8))
    assert tokens[0] == 3
    children = {tokens[i] for i, parent in enumerate(parents) if parent == 0}
    assert children == {4, 7}


def test_nothing_to_copy_means_the_root_alone() -> None:
    assert proposed([1, 2, 3, 4], 5, TreeShape("chain", 8))[0] == [5]
    assert proposed([1], 1, TreeShape("chain", 8))[0] == [1]


def test_a_new_sequence_forgets_the_old_one() -> None:
    drafter = LookupDrafter()
    for _ in range(2):
        drafter.start(torch.tensor([7]))
        assert drafter.propose(torch.tensor(2), TreeShape("chain", 8)).to_host().tokens == [2]
        drafter.observe(torch.tensor([1, 2, 3, 1]), None)
        assert drafter.propose(torch.tensor(2), TreeShape("chain", 8)).to_host().tokens[:2] == [2, 3]


def test_budgets_are_kept() -> None:
    context = list(range(100)) + list(range(40))
    for budget in (1, 2, 8, 63):
        tokens, _ = proposed(context, 40, TreeShape("best_first", budget))
        assert 2 <= len(tokens) <= budget + 1
