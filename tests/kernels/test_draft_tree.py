"""Draft trees: growth by a heap's walk and by the reference, walks by the plain form, both bit for bit."""

from __future__ import annotations

import heapq
import math
from dataclasses import fields
from itertools import product

import pytest
import torch
from torch import Tensor

from draftwood.batch import depth_first
from draftwood.kernels.draft_tree import CAPACITY, TURN, Assumed, Grown, Growth, load_grow, load_walk, reference
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.rows import poisoned

INF = math.inf
BUDGETS = [1, 2, 3, 7, 8, 15, 16, 22, 31, 32, 40, 63]
KINDS = ["random", "ties", "rounded", "impossible", "wrong", "flat", "nothing"]
ANY_KINDS = [*KINDS, "shuffled"]
"""A heap needs rows that descend; the growth does not."""
SIZES = [(15, 8), (7, 8), (1, 8), (15, 1), (3, 2), (20, 4), (5, 3), (63, 1)]


def candidates(depths: int, width: int, seed: int, kind: str = "random") -> tuple[Tensor, Tensor]:
    """Distinct tokens per depth and their log-probabilities, descending but for those that cannot be chosen."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.stack([torch.randperm(50, generator=draw)[:width] for _ in range(depths)])
    sharpness = torch.rand(depths, 1, generator=draw) * 6
    log_probs = torch.log_softmax(torch.randn(depths, 50, generator=draw) * sharpness, 1)
    log_probs = log_probs.sort(descending=True).values[:, :width].contiguous()
    if kind == "ties":
        log_probs = (log_probs / 2).round() * 2
    if kind == "rounded":  # Sums of different numbers become equal.
        log_probs = log_probs.half().float() - 2.0**-20 * torch.arange(width)
    if kind == "shuffled":
        log_probs = log_probs.gather(1, torch.rand(depths, width, generator=draw).argsort(1))
        log_probs = log_probs.masked_fill(torch.rand(depths, 1, generator=draw) < 0.2, -INF)
    if kind == "flat":
        log_probs[:] = -3.0
    if kind == "nothing":
        log_probs[:] = -INF
    if kind == "impossible":
        ranks = torch.randint(0, width + 1, (depths, 1), generator=draw)
        log_probs = log_probs.masked_fill(torch.arange(width) >= ranks, -INF)
    if kind == "wrong":
        log_probs = log_probs + 0.5 * (torch.rand(depths, 1, generator=draw) < 0.3)
        lost = torch.rand(depths, width, generator=draw)
        log_probs = log_probs.masked_fill(lost < 0.15, torch.nan).masked_fill((lost > 0.15) & (lost < 0.25), -INF)
    return tokens, log_probs


def growths(depths: int, width: int, budget: int, choice: int) -> Growth:
    """Growths of a budget with every seed, some with limits."""
    seed = [0, max(1, budget // 2), budget][choice % 3]
    depth = [depths + 5, max(1, depths - 2)][choice // 3 % 2]
    lowest = [-INF, math.log(0.05), -6.0, 0.0][choice % 4]
    return Growth(budget, [8, 8, 2, 1][choice // 2 % 4], min(depth, budget), seed, lowest)


def cases(number: int, kinds: list[str]) -> list[tuple[Tensor, Tensor, Growth]]:
    """Trees of every budget and kind, other sizes each time."""
    made = []
    for case, (budget, kind) in enumerate(product(BUDGETS, kinds)):
        depths, width = SIZES[(case + number) % len(SIZES)]
        growth = growths(depths, width, budget, case + 5 * number)
        made.append((*candidates(depths, width, case + 1000 * number, kind), growth))
    return made


def heap_nodes(tokens: Tensor, log_probs: Tensor, growth: Growth) -> list[tuple[int, int, int]]:
    """(token, parent, depth) of each node after the root by SPEC-dflash 3.3: a heap whose entries are a node's next
    child; equal scores by depth, then by the earlier parent, then by rank."""
    depths, width = min(len(tokens), growth.depth), min(tokens.shape[1], growth.candidates)
    limits = torch.nan_to_num(log_probs, nan=-INF, neginf=-INF).clamp(max=0.0)
    lowest = torch.tensor(growth.lowest)
    heap: list[tuple[float, int, int, int]] = []
    scores, nodes = [torch.tensor(0.0)], [(0, -1, 0)]

    def push(parent: int, rank: int) -> None:
        depth = nodes[parent][2]
        while depth < depths and rank < width:
            score = scores[parent] + limits[depth, rank]
            if score > -INF and score >= lowest:
                heapq.heappush(heap, (-float(score), depth + 1, parent, rank))
                return
            rank += 1

    def take(parent: int, rank: int, depth: int) -> None:
        scores.append(scores[parent] + limits[depth - 1, rank])
        nodes.append((int(tokens[depth - 1, rank]), parent, depth))
        push(parent, rank + 1)
        push(len(nodes) - 1, 0)

    push(0, 0)
    for last in range(growth.seed):
        spine = [entry for entry in heap if entry[2] == last]
        if not spine or len(nodes) > growth.budget:
            break
        heap.remove(spine[0])
        heapq.heapify(heap)
        _, depth, parent, rank = spine[0]
        take(parent, rank, depth)
    while heap and len(nodes) <= growth.budget:
        _, depth, parent, rank = heapq.heappop(heap)
        take(parent, rank, depth)
    order = sorted(range(len(nodes)), key=lambda node: nodes[node][2])
    return [(nodes[node][0], order.index(nodes[node][1]), nodes[node][2]) for node in order[1:]]


def check_grown(grown: Grown, growth: Growth, committed: int) -> None:
    """What follows from parents and depth, by plain loops."""
    count, parents, depth = int(grown.count), grown.parents.tolist(), grown.depth.tolist()
    assert count - 1 <= growth.budget and parents[0] == -1
    paths: list[list[int]] = []
    for node in range(count):
        paths.append([*(paths[parents[node]] if node else []), node])
        assert depth[node] == len(paths[node]) - 1
    paths += [[]] * (CAPACITY - count)
    assert grown.ancestors.tolist() == [path + [-1] * (CAPACITY - len(path)) for path in paths]
    assert grown.order.tolist() == depth_first(parents)
    assert grown.positions.tolist() == [committed + d for d in depth]
    assert grown.ancestors.dtype == grown.order.dtype == torch.int32


@pytest.mark.parametrize("number", range(3))
def test_reference_chooses_what_a_heap_chooses(number: int) -> None:
    pending, committed = torch.tensor(999), torch.tensor([2**33])
    for tokens, log_probs, growth in cases(number, KINDS):
        grown = load_grow("cpu")(pending, tokens, log_probs, committed, growth)
        count = int(grown.count)
        nodes = list(zip(grown.tokens.tolist(), grown.parents.tolist(), grown.depth.tolist(), strict=True))
        assert nodes[0] == (999, -1, 0) and nodes[count:] == [(0, -1, 0)] * (CAPACITY - count)
        assert nodes[1:count] == heap_nodes(tokens, log_probs, growth), growth
        check_grown(grown, growth, 2**33)


def check_growth(device: str, tokens: Tensor, log_probs: Tensor, growth: Growth, normaliser: Tensor | None) -> None:
    from draftwood.kernels.draft_tree import triton

    arguments = torch.tensor(999), tokens, log_probs, torch.tensor([2**33])
    # On the CPU, as a GPU's own sums may lie elsewhere.
    expected = reference.grow(*arguments, growth, normaliser)
    with poisoned():
        moved = None if normaliser is None else normaliser.to(device)
        grown = triton.grow(*(x.to(device) for x in arguments), growth, moved)
    for field in fields(Grown):
        got, wanted = getattr(grown, field.name), getattr(expected, field.name)
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        if field.name == "expected":
            torch.testing.assert_close(got.cpu(), wanted, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(got.cpu(), wanted), f"{field.name} of {growth}"


def check_growths(device: str, numbers: list[int], every: int = 1) -> None:
    for number in numbers:
        for tokens, log_probs, growth in cases(number, ANY_KINDS)[number % every :: every]:
            check_growth(device, tokens, log_probs, growth, None)


def check_edges(device: str) -> None:
    from draftwood.kernels.draft_tree import triton

    tokens, log_probs = candidates(15, 8, 3, "random")
    normaliser = torch.randn(15, generator=torch.Generator().manual_seed(1))
    check_growth(device, tokens, log_probs + normaliser[:, None], Growth(22, 8, 15, 11), normaliser)
    check_growth(device, tokens[:, 1:], log_probs[:, 1:], Growth(9, 4, 15, 4), None)
    check_growth(device, tokens.T.contiguous().T, log_probs[:1].expand(15, -1), Growth(9, 4, 15, 4), None)
    check_growth(device, tokens, log_probs, Growth(9, 4, 0, 4), None)
    check_growth(device, tokens[:0], log_probs[:0], Growth(9, 4, 9, 4), None)
    check_growth(device, tokens[:, :0], log_probs[:, :0], Growth(9, 4, 9, 4), None)
    committed = torch.tensor([0], device=device)
    for budget in (0, 64):
        with pytest.raises(ValueError, match="the budget is 1 to 63"):
            triton.grow(torch.tensor(1, device=device), tokens, log_probs, committed, Growth(budget, 8, 9))


def random_tree(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, parents, depth and count of a tree whose parents lie anywhere before their children."""
    draw = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, CAPACITY + 1, (), generator=draw))
    tokens, parents, depth = (torch.zeros(CAPACITY, dtype=torch.int64) for _ in range(3))
    parents -= 1
    used: dict[int, int] = {}
    for node in range(1, count):
        low = max(0, node - 4) if seed % 2 else 0
        parent = int(torch.randint(low, node, (), generator=draw))
        parents[node], depth[node], tokens[node] = parent, depth[parent] + 1, used.get(parent, 0)
        used[parent] = used.get(parent, 0) + 1
    tokens[0] = 5
    return tokens, parents, depth, torch.tensor(count)


def walk_plainly(tree: tuple[Tensor, Tensor, Tensor, Tensor], target: Tensor | None, at_most: int) -> list[int]:
    """Step to the child that holds the target's token, or to the first child without a target."""
    tokens, parents, _, count = (x.tolist() for x in tree)
    path = [0]
    while len(path) < at_most:
        below = [i for i in range(1, count) if parents[i] == path[-1]]
        below = [i for i in below if target is None or tokens[i] == target[path[-1]]]
        if not below:
            break
        path.append(below[0])
    return path


def check_walks(device: str, form: str, seeds: range) -> None:
    from draftwood.kernels.draft_tree import triton

    walk = {"reference": reference.walk, "triton": triton.walk}[form]
    lengths = set()
    counter, mean = torch.tensor([2**32 - 20], device=device), torch.tensor([3.4], dtype=torch.float64, device=device)
    for seed in seeds:
        tree = random_tree(seed)
        count = int(tree[3])
        draw = torch.Generator().manual_seed(seed)
        target = torch.randint(0, 3, (CAPACITY,), generator=draw) * (torch.rand(CAPACITY, generator=draw) < 0.5)
        for assumed in (None, Assumed(mean, counter)):
            at_most = CAPACITY
            if assumed:
                drawn = Assumed(mean.cpu(), counter.cpu().clone())
                at_most = max(1, int(reference.assumed_length(drawn)))
                assert at_most in (3, 4)
            path = walk_plainly(tree, None if assumed else target, at_most)
            lengths.add(len(path))
            text, start = torch.full((40 + CAPACITY,), -7, device=device), 3 + seed % 38
            committed, pending = torch.tensor([start], device=device), torch.tensor(9, device=device)
            with poisoned():
                walked = walk(*(x.to(device) for x in (*tree, target)), committed, pending, text, assumed)
            on_path = tree[0][path].tolist()
            rest = [-1] * (CAPACITY - len(path))
            following = int(target[path[-1]])
            assert walked.path.tolist() == path + rest
            assert walked.row.tolist() == [len(path), int(tree[2].max()), following, count, *on_path, *rest]
            assert walked.tokens.tolist() == on_path + rest
            assert walked.count.shape == walked.next_token.shape == ()
            assert (int(walked.count), int(walked.next_token)) == (len(path), following)
            assert (int(committed), int(pending)) == (start + len(path), following)
            assert text.tolist() == [-7] * start + on_path + [-7] * (40 + CAPACITY - start - len(path))
            assert assumed is None or int(assumed.counter) == int(drawn.counter)
    assert len(lengths) > 2


def check_chain(device: str) -> None:
    """A chain of 63 is followed whole, and up to the first mistake."""
    from draftwood.kernels.draft_tree import triton

    nodes = torch.arange(CAPACITY, device=device)
    for mistake in (63, 62, 0):
        target = (nodes + 101).index_fill(0, torch.tensor([mistake], device=device), 7)
        state = torch.tensor([0], device=device), torch.tensor(0, device=device), torch.zeros_like(nodes)
        walked = triton.walk(nodes + 100, nodes - 1, nodes, torch.tensor(64, device=device), target, *state)
        assert int(walked.count) == mistake + 1 and int(walked.next_token) == 7
        assert walked.path.tolist() == [*range(mistake + 1), *[-1] * (63 - mistake)]


def test_reference_walks_like_the_plain_form() -> None:
    assert load_walk("cpu") is reference.walk
    pytest.importorskip("triton")
    check_walks("cpu", "reference", range(60))


@pytest.mark.parametrize("mean", [1.0, 1.01, 2.25, 3.5, 4.93, 7.9, 15.999, 16.0])
def test_assumed_lengths_have_their_mean_in_few_rounds_too(mean: float) -> None:
    """To half a token after the first n rounds, to one in any n in a row; a run of 128 tokens has 26 of 4.93."""
    assumed = Assumed(torch.tensor([mean], dtype=torch.float64), torch.arange(2000))
    lengths = reference.assumed_length(assumed)
    assert set(lengths.tolist()) <= {math.floor(mean), math.ceil(mean)}
    assert torch.equal(assumed.counter, torch.arange(1, 2001))
    rounds = torch.arange(1, 2001, dtype=torch.float64)
    ahead = torch.cat((torch.zeros(1, dtype=torch.float64), lengths.cumsum(0) - mean * rounds))
    assert float(ahead.abs().max()) <= 0.5 + 1e-5 and float(ahead.max() - ahead.min()) <= 1 + 1e-5


def test_assumed_lengths_after_very_many_rounds() -> None:
    """Integers neither overflow nor lose the low bits: quarters are exact, whatever came before."""
    for start in (2**30 - 4, 2**32 - 4, 2**62):
        assumed = Assumed(torch.tensor([3.25], dtype=torch.float64), torch.arange(start, start + 8))
        assert reference.assumed_length(assumed).tolist() == [3, 4, 3, 3] * 2


def test_growth_interpreted() -> None:
    run_interpreted("tests.kernels.test_draft_tree", "check_growths('cpu', [0], 5)")


def test_edges_and_walks_interpreted() -> None:
    calls = "check_edges('cpu'); check_walks('cpu', 'triton', range(16)); check_chain('cpu')"
    run_interpreted("tests.kernels.test_draft_tree", calls)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 12))
def test_more_growth_interpreted(number: int) -> None:
    run_interpreted("tests.kernels.test_draft_tree", f"check_growths('cpu', [{number}], 3)")


@pytest.mark.gpu
def test_growth_on_a_gpu(gpu: str) -> None:
    check_growths(gpu, list(range(4)))
    check_edges(gpu)


@pytest.mark.gpu
def test_walks_on_a_gpu(gpu: str) -> None:
    check_walks(gpu, "triton", range(100))
    check_chain(gpu)


@pytest.mark.gpu
def test_a_round_in_a_captured_graph(gpu: str) -> None:
    tokens, log_probs = candidates(15, 8, 7, "random")
    growth = Growth(22, 8, 15, 11)
    inputs = [tokens.to(gpu), log_probs.to(gpu)]
    pending, committed = torch.tensor(5, device=gpu), torch.tensor([10], device=gpu)
    target, text = torch.zeros(CAPACITY, dtype=torch.int64, device=gpu), torch.zeros(400, dtype=torch.int64, device=gpu)
    grow, walk = load_grow(gpu), load_walk(gpu)

    def a_round() -> tuple[Grown, Tensor]:
        grown = grow(pending, *inputs, committed, growth)
        walked = walk(grown.tokens, grown.parents, grown.depth, grown.count, target, committed, pending, text)
        return grown, walked.row

    a_round()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grown, row = a_round()
    for seed in range(5):
        tokens, log_probs = candidates(15, 8, seed, "ties")
        inputs[0].copy_(tokens)
        inputs[1].copy_(log_probs)
        pending.fill_(seed)
        length = int(committed)
        expected = reference.grow(torch.tensor(seed), tokens, log_probs, torch.tensor([length]), growth)
        target.copy_(torch.where(expected.depth == 0, tokens[0, 0], tokens[1, 0]))
        graph.replay()
        assert torch.equal(grown.ancestors.cpu(), expected.ancestors) and torch.equal(grown.order.cpu(), expected.order)
        kept = int(row[0])
        assert kept >= 2 and int(committed) == length + kept
        assert torch.equal(text[length : length + kept], row[4 : 4 + kept])


CASES = {
    "63 of 15 x 8": (63, 15, 8),
    "22 of 15 x 8": (22, 15, 8),
    "a chain of 15": (15, 15, 1),
    "63 of 63 x 8": (63, 63, 8),
}


@pytest.mark.parametrize(("target", "case"), compile_cases(*CASES))
def test_compiles(target: str, case: str) -> None:
    from draftwood.kernels.draft_tree import triton

    budget, depths, width = CASES[case]
    whole = ("pending", "candidate", "committed", "token", "parent", "depth", "count", "position")
    arguments = {f"p_{name}": torch.int64 for name in whole} | {"p_ancestor": torch.int32, "p_order": torch.int32}
    arguments |= {"p_value": torch.float32, "p_normaliser": torch.float32, "p_expected": torch.float64, "lowest": -INF}
    sizes = {"TOKEN_STRIDE": width, "value_stride": width, "DEPTHS": depths, "WIDTH": width, "BUDGET": budget}
    sizes |= {"SEED": budget // 2, "CAPACITY": CAPACITY, "N": max(32, 1 << budget.bit_length())}
    sizes |= {"D": 1 << (depths - 1).bit_length(), "K": 1 << (width - 1).bit_length()}
    compile_kernel(triton._grow, target, arguments | sizes, num_warps=1).check()


@pytest.mark.parametrize(("target", "case"), compile_cases("found", "assumed"))
def test_walk_compiles(target: str, case: str) -> None:
    from draftwood.kernels.draft_tree import triton

    names = ("token", "parent", "depth", "count", "target", "committed", "pending", "text", "path", "row")
    arguments = {f"p_{name}": torch.int64 for name in names} | {"CAPACITY": CAPACITY, "HEADER": 4, "TURN": TURN}
    assumed = (
        {"p_mean": torch.float64, "p_counter": torch.int64}
        if case == "assumed"
        else {"p_mean": None, "p_counter": None}
    )
    compile_kernel(triton._walk, target, arguments | assumed, num_warps=1).check()
