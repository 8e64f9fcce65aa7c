from __future__ import annotations

import heapq
import itertools
import math
from typing import Any

import pytest
import torch

from draftwood.batch import depth_first
from draftwood.decode.tree import (
    BUILDERS,
    MAX_NODES,
    ROOT_ONLY,
    ChainSeed,
    DraftTree,
    HostTree,
    TreeShape,
    ancestors,
    build_tree,
    merge_paths,
)
from draftwood.errors import UsageError
from tests.kernels.test_draft_tree import candidates

BUDGETS = [1, 2, 8, 15, 16, 22, 40, 63]
PENDING = torch.tensor(999)


def heap_tree(log_probs: torch.Tensor, budget: int, seed: int) -> list[float]:
    """Scores of the nodes chosen by a best-first walk with a heap, the greedy chain of `seed` nodes first."""
    rows = [[float(value) for value in row] for row in log_probs]
    depths, width = len(rows), len(rows[0])
    heap: list[tuple[float, int, float, int, int]] = []
    order = itertools.count()

    def push(parent_score: float, depth: int, rank: int) -> None:
        if depth < depths and rank < width:
            score = parent_score + rows[depth][rank]
            if score > -math.inf:
                heapq.heappush(heap, (-score, next(order), parent_score, depth, rank))

    chosen: list[float] = []
    score = 0.0
    for depth in range(seed):
        if rows[depth][0] == -math.inf:
            break
        push(score, depth, 1)
        score += rows[depth][0]
        chosen.append(score)
    push(score, len(chosen), 0)
    while heap and len(chosen) < budget:
        negative, _, parent_score, depth, rank = heapq.heappop(heap)
        chosen.append(-negative)
        push(parent_score, depth, rank + 1)
        push(-negative, depth + 1, 0)
    return sorted(chosen, reverse=True)


def scores_of(tree: HostTree, tokens: torch.Tensor, log_probs: torch.Tensor) -> list[float]:
    scores = [0.0]
    for node in range(1, len(tree.tokens)):
        depth = tree.depth[node] - 1
        rank = tokens[depth].tolist().index(tree.tokens[node])
        scores.append(scores[tree.parents[node]] + float(log_probs[depth, rank]))
    return scores[1:]


def check_structure(tree: DraftTree) -> HostTree:
    for column in (tree.tokens, tree.parents, tree.depth):
        assert column.shape == (MAX_NODES,)
        assert column.dtype == torch.int64
    assert tree.count.shape == ()
    assert tree.count.dtype == torch.int64
    host = tree.to_host()
    count = len(host.tokens)
    assert (host.tokens[0], host.parents[0], host.depth[0]) == (999, -1, 0)
    for node in range(1, count):
        assert 0 <= host.parents[node] < node
        assert host.depth[node] == host.depth[host.parents[node]] + 1
    assert len(set(zip(host.parents, host.tokens, strict=True))) == count, "two siblings with one token"
    assert tree.tokens[count:].eq(0).all()
    assert tree.parents[count:].eq(-1).all()
    assert tree.depth[count:].eq(0).all()
    assert tree.expected.shape == () and tree.expected.dtype == torch.float64
    return host


@pytest.mark.parametrize("chain_seed", ["none", "half", "full"])
@pytest.mark.parametrize("kind", ["random", "ties", "impossible"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_best_first_chooses_what_a_heap_chooses(budget: int, kind: str, chain_seed: ChainSeed) -> None:
    lengths = {"none": 0, "half": max(1, budget // 2), "full": budget}
    for case, (depths, width) in enumerate([(15, 8), (7, 8), (1, 8), (15, 1), (3, 2), (20, 4)]):
        tokens, log_probs = candidates(depths, width, 100 * budget + case, kind)
        tree = build_tree(PENDING, tokens, log_probs, TreeShape("best_first", budget, chain_seed=chain_seed))
        host = check_structure(tree)
        scores = scores_of(host, tokens, log_probs)
        expected = heap_tree(log_probs, budget, min(depths, lengths[chain_seed]))
        assert sorted(scores, reverse=True) == pytest.approx(expected, abs=1e-5)
        assert host.depth == sorted(host.depth)
        for (above, one), (below, other) in itertools.pairwise(zip(host.depth[1:], scores, strict=True)):
            assert above < below or one >= other - 1e-5, "not in order of score within a depth"


@pytest.mark.parametrize(("chain_seed", "length"), [("half", 8), ("full", 15)])
def test_chain_seed_keeps_the_greedy_chain_as_first_children(chain_seed: ChainSeed, length: int) -> None:
    tokens, _ = candidates(15, 8, 3)
    flat = torch.full((15, 8), -3.0)  # without a seed such a tree is two levels deep
    tree = build_tree(PENDING, tokens, flat, TreeShape("best_first", 16, chain_seed=chain_seed))
    host = tree.to_host()
    node = 0
    for depth in range(length):
        node = host.parents.index(node)
        assert host.tokens[node] == int(tokens[depth, 0])
    assert max(host.depth) == length
    assert len(host.tokens) == 17


@pytest.mark.parametrize("kind", ["chain", "best_first"])
@pytest.mark.parametrize("case", ["random", "impossible"])
@pytest.mark.parametrize("chain_seed", ["none", "half"])
def test_the_floor_leaves_out_what_is_less_likely(kind: str, case: str, chain_seed: ChainSeed) -> None:
    sizes = set()
    for seed in range(8):
        tokens, log_probs = candidates(15, 8, seed, case)
        whole = build_tree(PENDING, tokens, log_probs, TreeShape(kind, 40, chain_seed=chain_seed))
        likely = [score for score in scores_of(whole.to_host(), tokens, log_probs) if score >= math.log(0.2)]
        tree = build_tree(PENDING, tokens, log_probs, TreeShape(kind, 40, chain_seed=chain_seed, floor=0.2))
        found = scores_of(check_structure(tree), tokens, log_probs)
        assert sorted(found) == pytest.approx(sorted(likely), abs=1e-6)
        sizes.add(len(found))
    assert len(sizes) > 2


@pytest.mark.parametrize("kind", ["chain", "best_first"])
def test_expected_is_the_sum_of_the_path_probabilities(kind: str) -> None:
    for case in ("random", "impossible", "ties"):
        tokens, log_probs = candidates(15, 8, 5, case)
        for budget in BUDGETS:
            tree = build_tree(PENDING, tokens, log_probs, TreeShape(kind, budget))
            scores = scores_of(tree.to_host(), tokens, log_probs)
            assert float(tree.expected) == pytest.approx(sum(map(math.exp, scores)), rel=1e-5)
    assert float(build_tree(PENDING, tokens, log_probs, ROOT_ONLY).expected) == 0.0
    assert float(merge_paths(PENDING, [[1, 2], [3]], 8).expected) == 0.0


@pytest.mark.parametrize("kind", ["chain", "best_first"])
def test_depth_limits_the_tree(kind: str) -> None:
    tokens, log_probs = candidates(15, 8, 4)
    for depth in (1, 3, 15, 40):
        shape = TreeShape(kind, 30, depth=depth)
        host = check_structure(build_tree(PENDING, tokens, log_probs, shape))
        assert shape.deepest == min(30, depth) and max(host.depth) <= depth
        assert len(host.tokens) == 1 + (min(15, depth) if kind == "chain" else min(30, {1: 8}.get(depth, 30)))


def test_candidates_limit_the_ranks() -> None:
    tokens, log_probs = candidates(6, 8, 1)
    host = build_tree(PENDING, tokens, log_probs, TreeShape("best_first", 40, candidates=2)).to_host()
    for token, depth in zip(host.tokens[1:], host.depth[1:], strict=True):
        assert token in tokens[depth - 1, :2]


def test_wrong_log_probabilities_still_give_a_tree() -> None:
    tokens, log_probs = candidates(6, 8, 2)
    log_probs[2, 0] = 1e-3
    log_probs[3, 4:] = torch.nan
    log_probs[4, 0] = torch.nan
    for kind in BUILDERS:
        check_structure(build_tree(PENDING, tokens, log_probs, TreeShape(kind, 30)))


@pytest.mark.parametrize("budget", BUDGETS)
def test_chain_takes_the_likeliest_of_each_depth(budget: int) -> None:
    tokens, log_probs = candidates(15, 8, budget)
    host = check_structure(build_tree(PENDING, tokens, log_probs, TreeShape("chain", budget)))
    length = min(budget, 15)
    assert host.tokens == [999, *tokens[:length, 0].tolist()]
    assert host.parents == list(range(-1, length))
    assert host.depth == list(range(length + 1))


def test_chain_ends_at_an_impossible_depth() -> None:
    tokens, log_probs = candidates(15, 8, 1)
    log_probs[4] = -torch.inf
    host = check_structure(build_tree(PENDING, tokens, log_probs, TreeShape("chain", 15)))
    assert len(host.tokens) == 5


@pytest.mark.parametrize("kind", list(BUILDERS))
def test_without_candidates_there_is_only_the_root(kind: str) -> None:
    nothing = torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, 0)
    host = check_structure(build_tree(PENDING, *nothing, TreeShape(kind, 8)))
    assert host == HostTree([999], [-1], [0])


def test_root_only_ignores_candidates() -> None:
    tokens, log_probs = candidates(15, 8, 1)
    assert len(check_structure(build_tree(PENDING, tokens, log_probs, ROOT_ONLY)).tokens) == 1


def test_empty_has_no_node() -> None:
    assert DraftTree.empty("cpu").to_host() == HostTree([], [], [])


@pytest.mark.parametrize("budget", [0, -1, 64, 1000, 2.5, True])
def test_budget_outside_its_limits_is_refused_with_the_limits(budget: Any) -> None:
    for refused in (lambda: TreeShape("chain", budget), lambda: merge_paths(PENDING, [], budget)):
        with pytest.raises(UsageError, match="1 to 63"):
            refused()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"kind": "bush"}, "best_first"),
        ({"candidates": 0}, "candidates"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"chain_seed": "most"}, "half, full, none"),
        ({"depth": 0}, "depth"),
        ({"floor": 1.5}, "floor"),
        ({"floor": float("nan")}, "floor"),
    ],
)
def test_a_wrong_shape_is_refused(setting: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        TreeShape(**{"kind": "chain", "budget": 4} | setting)


def test_merged_paths_share_beginnings_and_earlier_paths_come_first() -> None:
    paths = [[1, 2, 3], [1, 2, 4], [], [5, 2], [1, 2, 3, 6]]
    host = check_structure(merge_paths(PENDING, paths, 63))
    assert host.tokens == [999, 1, 2, 3, 4, 5, 2, 6]
    assert host.parents == [-1, 0, 1, 2, 2, 0, 5, 3]
    assert host.depth == [0, 1, 2, 3, 3, 1, 2, 4]
    assert check_structure(merge_paths(PENDING, paths, 4)).tokens == [999, 1, 2, 3, 4]
    assert check_structure(merge_paths(PENDING, [[7] * 100], 63)).depth == list(range(64))
    assert check_structure(merge_paths(PENDING, [], 4)).tokens == [999]


def random_parents(count: int, seed: int) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    return [-1] + [int(torch.randint(0, node, (), generator=draw)) for node in range(1, count)]


def test_depth_first_visits_first_children_first() -> None:
    assert depth_first([-1, 0, 0, 1, 2, 1, 3]) == [0, 1, 3, 6, 5, 2, 4]
    assert depth_first([-1]) == [0]
    assert depth_first([]) == []

    def visit(parents: list[int], node: int) -> list[int]:
        below = (visit(parents, child) for child, parent in enumerate(parents) if parent == node)
        return [node, *itertools.chain.from_iterable(below)]

    for seed in range(20):
        parents = random_parents(1 + 3 * seed, seed)
        assert depth_first(parents) == visit(parents, 0)


@pytest.mark.parametrize("count", [1, 2, 17, 64])
def test_ancestors_hold_each_path_by_depth(count: int) -> None:
    chain = list(range(-1, count - 1))
    for parents in (chain, random_parents(count, 1), random_parents(count, 2)):
        depth = [0]
        for parent in parents[1:]:
            depth.append(depth[parent] + 1)
        tree = DraftTree.empty("cpu")
        tree.parents[:count] = torch.tensor(parents)
        tree.depth[:count] = torch.tensor(depth)
        tree.count = torch.tensor(count)
        for max_depth in (max(depth), 63):
            expected = torch.full((MAX_NODES, max_depth + 1), -1)
            for row in range(count):
                node = row
                while node >= 0:
                    expected[row, depth[node]] = node
                    node = parents[node]
            assert torch.equal(ancestors(tree, max_depth), expected)
