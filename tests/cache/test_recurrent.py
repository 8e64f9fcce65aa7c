"""The recurrent state: trees and replay against plain steps, bit for bit; the chunk form against the recurrence."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from draftwood.batch import depth_first
from draftwood.cache.recurrent import RecurrentState
from draftwood.kernels.delta_rule import DeltaShape

SHAPE = DeltaShape(key_heads=2, value_heads=6, key_dim=16, value_dim=16, eps=1e-6)


def inputs(count: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """raw [n, F], log decay g <= 0 and beta in (0, 1), [n, Hv]."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(count, SHAPE.channels, generator=generator)
    g = -torch.rand(count, SHAPE.value_heads, generator=generator)
    beta = torch.rand(count, SHAPE.value_heads, generator=generator)
    return raw.to(device), g.to(device), beta.to(device)


def new_state(device: str) -> RecurrentState:
    weight = torch.randn(4, SHAPE.channels, generator=torch.Generator().manual_seed(9)).to(device)
    return RecurrentState(SHAPE, weight, device)


def step(state: RecurrentState, raw: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Plain decoding: one row staged and committed."""
    out = state.stage(raw[None], g[None], beta[None], [-1], [0])
    state.commit(torch.zeros(1, dtype=torch.long, device=raw.device), 1)
    return out[0]


@pytest.mark.parametrize("seed", range(6))
def test_every_node_of_a_tree_is_plain_decoding_along_its_path(seed: int, device: str) -> None:
    draw = random.Random(seed)
    size = draw.choice((2, 7, 16, 23))
    parents = [-1] + [draw.randrange(node) for node in range(1, size)]
    before, (raw, g, beta) = inputs(5, device, 100), inputs(size, device, seed)
    tree = new_state(device)
    for row in zip(*before, strict=True):
        step(tree, *row)
    out = tree.stage(raw, g, beta, parents, depth_first(parents))
    for node in range(size):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        plain = new_state(device)
        for row in zip(*before, strict=True):
            step(plain, *row)
        for at in path:
            found = step(plain, raw[at], g[at], beta[at])
        assert torch.equal(out[node], found)
    tree.commit(torch.tensor(path, device=device), len(path))
    assert torch.equal(tree.state, plain.state)
    assert torch.equal(tree.window, plain.window)
    assert tree.length == plain.length == 5 + len(path)


@pytest.mark.parametrize("count", [1, 3, 63, 64, 65, 130])
def test_the_chunk_form_is_the_recurrence(count: int, device: str) -> None:
    raw, g, beta = inputs(count, device)
    plain, chunked = new_state(device), new_state(device)
    expected = torch.stack([step(plain, *row) for row in zip(raw, g, beta, strict=True)])
    pad = -count % 64
    padded = [torch.nn.functional.pad(t, (0, 0, 0, pad), value=0.7) for t in (raw, g, beta)]
    found = chunked.prefill(*padded, count)[:count]
    assert float((found - expected).norm() / expected.norm()) < 2e-5
    assert float((chunked.state - plain.state).norm() / plain.state.norm()) < 2e-5
    assert torch.equal(chunked.window, plain.window)


def test_snapshot_and_truncate() -> None:
    state = new_state("cpu")
    raw, g, beta = inputs(4, "cpu")
    step(state, raw[0], g[0], beta[0])
    saved, before = state.snapshot(), state.state.clone()
    step(state, raw[1], g[1], beta[1])
    state.restore(saved)
    assert torch.equal(state.state, before)
    with pytest.raises(ValueError, match="snapshot"):
        state.truncate(0)
    with pytest.raises(ValueError, match="staged"):
        state.commit(torch.zeros(1, dtype=torch.long), 1)
