"""The recurrent state: trees and replay against plain steps, bit for bit; the chunk form against the recurrence."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from draftwood.batch import ForwardInput
from draftwood.cache.recurrent import DeltaWeights
from draftwood.cache.states import recurrent_state
from draftwood.cache.step import DecodeStep
from draftwood.kernels.delta_rule import DeltaShape

SHAPE = DeltaShape(key_heads=2, value_heads=6, key_dim=16, value_dim=16, eps=1e-6)


def inputs(count: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """raw [n, F] and the logits of decay and beta, [n, Hv]."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(count, SHAPE.channels, generator=generator)
    a, b = torch.randn(2, count, SHAPE.value_heads, generator=generator)
    return raw.to(device), a.to(device), b.to(device)


def new_state(device: str) -> Any:
    """In the form of the device, float32 mode."""
    generator = torch.Generator().manual_seed(9)
    conv, rate = (
        torch.randn(4, SHAPE.channels, generator=generator),
        -torch.rand(SHAPE.value_heads, generator=generator),
    )
    weights = DeltaWeights(conv.to(device), rate.to(device), rate.to(device), torch.float32)
    return recurrent_state(SHAPE, weights, device)


def tree_of(parents: list[int], device: str) -> DecodeStep:
    """A pass over a tree after nothing."""
    depth: list[int] = []
    for parent in parents:
        depth.append(0 if parent < 0 else depth[parent] + 1)
    nodes = (torch.tensor(numbers, device=device) for numbers in (depth, depth, parents))
    return DecodeStep(ForwardInput(*nodes), torch.zeros(1, dtype=torch.int64, device=device), torch.empty(0))


def step(state: Any, raw: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Plain decoding: one row staged and committed."""
    out = state.stage(raw[None], a[None], b[None], tree_of([-1], raw.device.type))
    state.commit(torch.zeros(1, dtype=torch.long, device=raw.device), 1)
    return out[0]


@pytest.mark.parametrize("seed", range(6))
def test_every_node_of_a_tree_is_plain_decoding_along_its_path(seed: int, device: str) -> None:
    draw = random.Random(seed)
    size = draw.choice((2, 7, 16, 23))
    parents = [-1] + [draw.randrange(node) for node in range(1, size)]
    before, (raw, a, b) = inputs(5, device, 100), inputs(size, device, seed)
    tree = new_state(device)
    for row in zip(*before, strict=True):
        step(tree, *row)
    out = tree.stage(raw, a, b, tree_of(parents, device))
    for node in range(size):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        plain = new_state(device)
        for row in zip(*before, strict=True):
            step(plain, *row)
        for at in path:
            found = step(plain, raw[at], a[at], b[at])
        assert torch.equal(out[node], found)
    tree.commit(torch.tensor(path, device=device), len(path))
    assert torch.equal(tree.state, plain.state)
    assert torch.equal(tree.window, plain.window)
    assert tree.length == plain.length == 5 + len(path)


@pytest.mark.parametrize("count", [1, 3, 63, 64, 65, 130])
def test_the_chunk_form_is_the_recurrence(count: int, device: str) -> None:
    made = inputs(count, device)
    plain, chunked = new_state(device), new_state(device)
    expected = torch.stack([step(plain, *row) for row in zip(*made, strict=True)])
    padded = [torch.nn.functional.pad(t, (0, 0, 0, -count % 64), value=0.7) for t in made]
    found = chunked.prefill(*padded, count)[:count]
    close = 2e-5 if device == "cpu" else 1e-4
    assert float((found - expected).norm() / expected.norm()) < close
    assert float((chunked.state - plain.state).norm() / plain.state.norm()) < close
    assert torch.equal(chunked.window, plain.window)


def test_snapshot_and_truncate() -> None:
    state = new_state("cpu")
    raw, a, b = inputs(4, "cpu")
    step(state, raw[0], a[0], b[0])
    saved, before = state.snapshot(), state.state.clone()
    step(state, raw[1], a[1], b[1])
    state.restore(saved)
    assert torch.equal(state.state, before)
    with pytest.raises(ValueError, match="snapshot"):
        state.truncate(0)
    with pytest.raises(ValueError, match="staged"):
        state.commit(torch.zeros(1, dtype=torch.long), 1)


def test_scratch_of_trees_is_there_before_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan has it among what stays; made later it would part the room that a prompt's pass was tried in."""
    from draftwood.cache import device_recurrent

    passed: list[Tensor] = []
    form = SimpleNamespace(
        stage_nodes=lambda *arguments: None, tree_rule=lambda visits, plan, state, slots, shape: passed.append(slots)
    )
    monkeypatch.setattr(device_recurrent, "load_device_form", lambda device: form)
    floats = torch.zeros(4, SHAPE.channels), torch.zeros(SHAPE.value_heads), torch.zeros(SHAPE.value_heads)
    weights = DeltaWeights(*floats, torch.bfloat16)
    states = [device_recurrent.DeviceRecurrentState(SHAPE, weights, "cpu", rows=8) for _ in range(2)]
    [made] = [slots for (shape, _, rows), slots in device_recurrent._SLOTS.items() if (shape, rows) == (SHAPE, 8)]
    for state in states:
        state.stage(*inputs(1, "cpu"), SimpleNamespace(plan=None))  # type: ignore[arg-type]
    assert len(passed) == 2 and all(slots is made for slots in passed)
