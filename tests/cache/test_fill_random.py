"""Sequences of tokens that nobody read: as long as was said, alike for a seed, fit for a pass."""

from __future__ import annotations

import pytest
import torch

from draftwood import Engine
from draftwood.batch import ForwardInput
from draftwood.cache.kv import KVState
from draftwood.cache.registry import kv_pair
from draftwood.cache.window import WindowedKVState


@pytest.mark.parametrize("kv", ["f32", "q8_0", "tq3_0"])
def test_rows_are_those_of_the_seed(kv: str, device: str) -> None:
    states = [KVState(kv_pair(kv), 2, 64, 5000, device) for _ in range(3)]
    for state, seed in zip(states, (3, 3, 4), strict=True):
        state.fill_random(5000, seed)
    rows = [torch.cat(state.read(0, 5000)) for state in states]
    assert all(state.length == 5000 for state in states)
    assert torch.isfinite(rows[0]).all() and rows[0].std() > 0.9
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert not torch.equal(*states[0].read(0, 64))


def test_a_window_keeps_the_last_rows(device: str) -> None:
    whole, window = KVState(kv_pair("f32"), 2, 64, 4500, device), WindowedKVState(kv_pair("f32"), 2, 64, 256, device)
    for state in (whole, window):
        state.fill_random(4500, 1)
    assert window.length == 4500 and window.first <= 4500 - 256
    assert torch.equal(torch.cat(window.read(4300, 4500)), torch.cat(whole.read(4300, 4500)))


def test_a_sequence_and_a_draft_go_on_from_there(device: str) -> None:
    name = "synthetic:qwen3.6-27b-tiny"
    engine = Engine.load(name, draft=f"{name}-dflash:q8_0", max_context=512, device=device)
    model, logits = engine.target.model, []
    for _ in range(2):
        sequence = model.new_sequence(engine.kv, 512)
        sequence.fill_random(200, 5)
        assert sequence.length == int(sequence.committed) == 200
        assert all(state.length == 200 for state in sequence.states)
        token = torch.ones(1, dtype=torch.int64, device=device)
        inputs = ForwardInput(token, token * 200, -token)
        logits.append(model.logits(model.decode(inputs, sequence).hidden))
        sequence.commit(token * 0, token, 1)
    assert torch.isfinite(logits[0]).all() and torch.equal(*logits)
    with pytest.raises(ValueError, match="not empty"):
        sequence.fill_random(200, 5)
    engine.drafter.fill_random(200, 5)
    assert engine.drafter.context.length == 200  # type: ignore[attr-defined]
    shape = engine._shape_of("tree", 8)
    trees = [engine.drafter.propose(token[0], shape).to_host()]
    engine.drafter.fill_random(200, 5)
    trees.append(engine.drafter.propose(token[0], shape).to_host())
    assert trees[0] == trees[1] and len(trees[0].tokens) == 9
