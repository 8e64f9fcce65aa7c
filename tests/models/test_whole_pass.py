"""DESIGN law 1 on whole passes of a hybrid model: a node of a tree has the bits of its tokens decoded one by one, a
prompt the same bits however it is cut, and a second cold run those of the first.

On a CPU a tiny model, on a GPU the first four layers of the 27B shape, and all 64 of them in the slow tier."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from draftwood.batch import GRANULE, MAX_ROWS, ForwardInput
from draftwood.cache.kv import KVState, poison
from draftwood.cache.registry import KV_TYPES, kv_pair
from draftwood.cache.sequence import Sequence as SequenceState
from draftwood.layers.weights import Weights
from draftwood.models import known
from draftwood.models.base import Model
from draftwood.models.registry import architecture
from draftwood.models.synthetic import SyntheticModel
from draftwood.prefill.dense import read_prompt
from tests.kernels.rows import poisoned

ROWS = (1, 2, 5, 9, 15, 16, 17, 23, 32, 41, 48, 63, 64)
TINY, FOUR, WHOLE = "qwen3.6-27b-tiny", "qwen3.6-27b-4layers", "qwen3.6-27b"

EDGES = (1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 2047, 2048, 4095)
"""Committed tokens around the ends of attention blocks and of granules."""

FEW_EDGES = (33, 64, 127)
WHOLE_EDGES = (31, 33, 64, 127, 129, 2048, 4095)

CUTS = ((1,) * 34, (2, 32), (32, 2), (3, 16, 15), (33, 1))
"""Ways to cut 34 granules into passes; 32 is the longest that an engine takes."""


@cache
def load(name: str, device: str) -> Model:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    source = SyntheticModel(known.header(name))
    module = architecture(source)
    return module.build(module.read_spec(source), Weights(source, device, "auto"))


def drawn(model: Model, count: int, seed: int) -> Tensor:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.spec.vocab, (count,), generator=generator).to(model.device)


def trees(seed: int) -> Iterator[list[int]]:
    """Parents of 64 nodes, of which any first ones are a tree too: a chain, and trees of about 25 and 6 levels."""
    rng = random.Random(seed)
    yield list(range(-1, MAX_ROWS - 1))
    for back in (4, 24):
        yield [-1] + [rng.randrange(max(0, node - back), node) for node in range(1, MAX_ROWS)]


def path_to(parents: Sequence[int], node: int) -> list[int]:
    path = [node]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


def empty_sequence(model: Model, kv: str, capacity: int) -> SequenceState:
    """One whose caches show a row that is read before it was written."""
    sequence = model.new_sequence(kv_pair(kv), capacity)
    for state in sequence.states:
        if isinstance(state, KVState):
            poison(state)
    return sequence


def tree_pass(model: Model, sequence: SequenceState, tokens: Tensor, parents: Sequence[int]) -> Tensor:
    """Logits of the nodes, which stay staged."""
    depth = [len(path_to(parents, node)) - 1 for node in range(len(parents))]
    places = torch.tensor([depth, parents], device=model.device)
    inputs = ForwardInput(tokens[: len(parents)], places[0] + sequence.length, places[1], (0, len(parents)))
    return model.logits(model.decode(inputs, sequence).hidden)


def commit(sequence: SequenceState, tokens: Tensor, path: Sequence[int]) -> None:
    kept = torch.tensor(path, device=tokens.device)
    room = kept.new_zeros(MAX_ROWS)
    room[: len(path)] = kept
    sequence.commit(room, tokens[room], len(path))


def one_by_one(model: Model, sequence: SequenceState, tokens: Tensor) -> Tensor:
    """Logits after each of the tokens, which are decoded one a pass and committed."""
    rows = []
    for token in tokens.split(1):
        rows.append(tree_pass(model, sequence, token, [-1]))
        commit(sequence, token, [0])
    return torch.cat(rows)


def assert_same_states(found: SequenceState, expected: object, what: str) -> None:
    """Every committed row, recurrent state, window and token; expected: a snapshot."""
    pairs = zip(tree_leaves(found.snapshot()), tree_leaves(expected), strict=True)
    for place, (left, right) in enumerate(pairs):
        same = torch.equal(left, right) if isinstance(left, Tensor) else left == right
        assert same, f"{what}: part {place} of the states differs"


def check_rows(model: Model, kv: str, lengths: Sequence[int]) -> None:
    prompt = drawn(model, max(lengths), 0)
    sequence = empty_sequence(model, kv, max(lengths) + MAX_ROWS)
    empty = sequence.snapshot()
    for length in lengths:
        sequence.restore(empty)
        read_prompt(model, sequence, prompt[:length])
        here = sequence.snapshot()
        for number, parents in enumerate(trees(length)):
            tokens = drawn(model, MAX_ROWS, 10 * length + number)
            whole = tree_pass(model, sequence, tokens, parents)
            for count in ROWS:
                part = tree_pass(model, sequence, tokens, parents[:count])
                assert torch.equal(part, whole[:count]), f"{count} rows of tree {number} after {length}"
            deepest = max(range(len(parents)), key=lambda node: len(path_to(parents, node)))
            path = path_to(parents, deepest)
            alone = one_by_one(model, sequence, tokens[path])
            assert torch.equal(alone, whole[path]), f"tree {number} after {length}, one by one"
            plain = sequence.snapshot()
            sequence.restore(here)
            tree_pass(model, sequence, tokens, parents)
            commit(sequence, tokens, path)
            assert_same_states(sequence, plain, f"tree {number} after {length}")
            sequence.restore(here)


def check_prompts(model: Model, kv: str, ways: Sequence[Sequence[int]]) -> None:
    """ways: granules a pass. The prompt ends inside its last granule; the first way is run twice, the second time with
    every fresh buffer full of NaN."""
    count = GRANULE * sum(ways[0]) - 23
    prompt = drawn(model, count, 1)
    expected: tuple[Tensor, Tensor, object] | None = None
    for number, way in enumerate((*ways, ways[0])):
        sequence, hidden = empty_sequence(model, kv, count + 1), []
        with poisoned() if number == len(ways) else nullcontext():
            for tokens in prompt.split([GRANULE * granules for granules in way[:-1]] + [GRANULE * way[-1] - 23]):
                positions = torch.arange(sequence.length, sequence.length + len(tokens), device=model.device)
                inputs = ForwardInput(tokens, positions, offsets=(0, len(tokens)))
                hidden.append(model.prefill(inputs, sequence).hidden)
            rows = torch.cat(hidden)
            logits = model.logits(rows[-MAX_ROWS:])
        assert logits.isfinite().all()
        if expected is None:
            expected = rows, logits, sequence.snapshot()
        assert torch.equal(rows, expected[0]) and torch.equal(logits, expected[1]), way
        assert_same_states(sequence, expected[2], str(way))


def tiers(name: str, *others: object) -> object:
    """A case of the CPU, of the GPU or of its slow tier, by the size of the model."""
    device = "cpu" if name == TINY else "cuda"
    marks = {TINY: (), FOUR: (pytest.mark.gpu,), WHOLE: (pytest.mark.gpu, pytest.mark.slow)}[name]
    return pytest.param(name, device, *others, marks=marks, id=f"{name}-{others[0]}")


@pytest.mark.parametrize(
    ("name", "device", "kv", "lengths"),
    [
        tiers(TINY, "f32", FEW_EDGES),
        tiers(FOUR, "q8_0", EDGES),
        tiers(FOUR, "f16", EDGES),
        tiers(WHOLE, "q8_0", WHOLE_EDGES),
        *(tiers(WHOLE, kind, (129,)) for kind in KV_TYPES if kind != "q8_0"),
    ],
)
def test_a_node_has_the_bits_of_plain_decoding(name: str, device: str, kv: str, lengths: Sequence[int]) -> None:
    check_rows(load(name, device), kv, lengths)


@pytest.mark.parametrize(
    ("name", "device", "kv", "ways"),
    [
        tiers(TINY, "f32", ((5,), (1,) * 5, (3, 2))),
        tiers(FOUR, "q8_0", CUTS),
        tiers(FOUR, "f16", CUTS),
        tiers(WHOLE, "q8_0", CUTS),
    ],
)
def test_a_prompt_has_the_same_bits_however_it_is_cut(
    name: str, device: str, kv: str, ways: Sequence[Sequence[int]]
) -> None:
    check_prompts(load(name, device), kv, ways)
