from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from draftwood.decode.accept import accept
from draftwood.decode.params import SamplingParams
from draftwood.decode.sampling import Sampler
from draftwood.decode.tree import (
    BUILDERS,
    MAX_NODES,
    DraftTree,
    TreeShape,
    ancestors,
    build_tree,
    merge_paths,
)


def walk(tree: DraftTree, target: list[int]) -> tuple[list[int], int]:
    """The plain form: step to the child that holds the target's token, as long as there is one."""
    host = tree.to_host()
    children = {(host.parents[i], host.tokens[i]): i for i in range(1, len(host.tokens))}
    path = [0]
    while (child := children.get((path[-1], target[path[-1]]))) is not None:
        path.append(child)
    return path, target[path[-1]]


def check(tree: DraftTree, target: torch.Tensor) -> int:
    accepted = accept(tree, target)
    path, next_token = walk(tree, target.tolist())
    assert accepted.path.tolist() == path + [-1] * (MAX_NODES - len(path))
    assert accepted.count.shape == accepted.next_token.shape == ()
    assert int(accepted.count) == len(path)
    assert int(accepted.next_token) == next_token
    told = accept(tree, target, int(tree.count))
    assert torch.equal(told.path, accepted.path) and told.next_token == accepted.next_token
    assert int(told.count) == len(path)
    return len(path)


@pytest.mark.parametrize("vocabulary", [2, 3, 10])
def test_random_trees_are_walked_like_the_plain_form(vocabulary: int) -> None:
    draw = torch.Generator().manual_seed(vocabulary)
    lengths = set()
    for _ in range(100):
        paths = torch.randint(0, vocabulary, (12, 9), generator=draw).tolist()
        budget = int(torch.randint(1, 64, (), generator=draw))
        tree = merge_paths(torch.tensor(1), paths, budget)
        target = torch.randint(0, vocabulary, (MAX_NODES,), generator=draw)
        lengths.add(check(tree, target))
    assert len(lengths) > 2


def test_a_chain_of_63_is_accepted_whole_or_up_to_the_first_mistake() -> None:
    tree = merge_paths(torch.tensor(100), [list(range(101, 164))], 63)
    target = tree.tokens + 1
    assert check(tree, target) == 64
    for mistake in (0, 1, 30, 62):
        wrong = target.clone()
        wrong[mistake] = 7
        assert check(tree, wrong) == mistake + 1


def test_the_root_alone_is_accepted_and_unused_slots_are_not() -> None:
    tree = merge_paths(torch.tensor(5), [], 8)
    # Unused slots hold token 0: the target's 0 must not match them.
    target = torch.zeros(MAX_NODES, dtype=torch.int64)
    assert check(tree, target) == 1
    assert check(merge_paths(torch.tensor(5), [[0, 0]], 8), target) == 3


class NoHostReads(TorchDispatchMode):
    """Fails on the operations that wait for a device: reading a value, or a size that depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", list(BUILDERS))
def test_a_round_reads_nothing_on_the_host(kind: str) -> None:
    pending = torch.tensor(3)
    tokens = torch.arange(8).expand(15, -1)
    log_probs = torch.linspace(-1, -5, 8).expand(15, -1)
    logits = torch.randn(MAX_NODES, 50, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.1)
    sampler = Sampler(params, 50, "cpu", torch.arange(5))
    with NoHostReads():
        tree = build_tree(pending, tokens, log_probs, TreeShape(kind, 22))
        path = ancestors(tree, 15)
        path_tokens = tree.tokens[path.clamp(min=0)].where(path >= 0, -1)
        accepted = accept(tree, sampler.draw(logits, tree.depth + 6, path_tokens))
        on_path = tree.tokens[accepted.path.clamp(min=0)].where(accepted.path >= 0, -1)
        sampler.commit(on_path)
    assert int(accepted.count) >= 1
    with pytest.raises(AssertionError), NoHostReads():
        int(accepted.count)
