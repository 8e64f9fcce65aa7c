"""Replayed blocks: nothing leaks, and a block is what the engine's draft makes of it (SPEC-draft-training 6)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from draftwood.cache.registry import kv_pair
from draftwood.layers.weights import Weights
from draftwood.models import dflash
from draftwood.models.base import Model
from draftwood.models.draft_spec import fit, read_spec
from draftwood.models.draft_tensors import DraftTensors, open_source
from draftwood.training.evaluate import judge
from draftwood.training.packing import Rows, pack, place_anchors
from draftwood.training.teachers.base import Teacher
from tests.training.small import document, net_for, replay_for, target_file, teacher


@pytest.fixture(scope="module")
def taught() -> Teacher:
    return teacher()


@pytest.fixture(scope="module")
def rows() -> Rows:
    packed = pack([document(50, (20, 50), 0), document(60, (25, 60), 1)], 128)
    return packed.take(torch.arange(len(packed)), "cpu")


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_together_equal_each_alone(taught: Teacher, rows: Rows, causal: bool) -> None:
    replay = replay_for(taught, net_for(taught, causal=causal))
    features = replay.features(rows)
    at = torch.tensor([[22, 23, 30, 48, 85, 100]])
    together = replay.hidden(features, rows, place_anchors(rows, at, 8))
    for index in range(at.shape[1]):
        alone = replay.hidden(features, rows, place_anchors(rows, at[:, index : index + 1], 8))
        torch.testing.assert_close(together[:, index], alone[:, 0], rtol=1e-5, atol=1e-5)


def test_nothing_from_the_anchor_on_or_of_another_document_is_seen(taught: Teacher, rows: Rows) -> None:
    replay = replay_for(taught, net_for(taught))
    features = replay.features(rows)
    at = torch.tensor([[30, 85]])
    before = replay.hidden(features, rows, place_anchors(rows, at, 8))
    for anchor, index, first in ((30, 0, 0), (85, 1, 50)):
        other = features.clone()
        other[:, anchor:] = 1e3
        other[:, :first] = -1e3
        after = replay.hidden(other, rows, place_anchors(rows, at, 8))
        assert torch.equal(after[:, index], before[:, index])
        other[:, anchor - 1] += 1.0
        moved = replay.hidden(other, rows, place_anchors(rows, at, 8))
        assert not torch.allclose(moved[:, index], before[:, index], atol=1e-3)


def test_a_shorter_causal_block_is_the_beginning_of_the_long_one(taught: Teacher, rows: Rows) -> None:
    net = net_for(taught)
    long = replay_for(taught, net)
    features = long.features(rows)
    at = torch.tensor([[30, 85]])
    whole = long.hidden(features, rows, place_anchors(rows, at, 8))
    short = net_for(taught, block=5)
    short.load_state_dict(net.state_dict())
    part = replay_for(taught, short).hidden(features, rows, place_anchors(rows, at, 5))
    torch.testing.assert_close(part, whole[:, :, :4], rtol=1e-5, atol=1e-5)


def test_equals_the_engine_s_draft_on_the_same_weights(taught: Teacher, rows: Rows, tmp_path: Path) -> None:
    from draftwood.training.export import DraftFacts, write_gguf

    net = net_for(taught)
    shape = net.shape
    facts = DraftFacts("test", shape, context_length=4096)
    tensors = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    path = tmp_path / "draft.gguf"
    write_gguf(path, tensors, facts, target_file(), matrix_type="F32")
    source = open_source(path)
    target = cast(
        Model,
        SimpleNamespace(
            spec=taught.spec,
            device="cpu",
            embedding=lambda tokens: taught.embedding[tokens],
            logits=lambda hidden: hidden @ taught.head.T,
        ),
    )
    model = dflash.build(fit(read_spec(source), taught.spec), Weights(DraftTensors(source), "cpu", "float32"), target)
    replay = replay_for(taught, net)
    features = replay.features(rows)
    at = torch.tensor([[30, 85]])
    hidden = replay.hidden(features, rows, place_anchors(rows, at, shape.block))
    for index, (anchor, first) in enumerate(((30, 0), (85, 50))):
        context = model.new_context(kv_pair("f32"), 64)
        model.project(features[0, first:anchor].float(), context)
        block = model.block(rows.tokens[0, anchor], shape.block, context)
        error = (hidden[0, index] - block[1:]).norm() / block[1:].norm()
        assert error < 1e-5


def test_slots_are_judged_at_their_own_positions(taught: Teacher) -> None:
    """A draft that says "the token at my position" by its hidden rows is right everywhere; shifted by one, nowhere."""
    tokens, roles = document(60, (20, 60), 7)
    tokens = np.random.default_rng(0).permutation(500)[:60]
    replay = replay_for(taught, net_for(taught))
    vocab = taught.spec.vocab
    for shift, expected in ((0, True), (1, False)):

        def oracle(features, rows, anchors, *_, shift=shift):  # type: ignore[no-untyped-def]
            places = anchors.at.clamp(max=rows.tokens.shape[1] - 1).unsqueeze(-1) + torch.arange(1, 8) + shift
            ids = rows.tokens.gather(1, places.clamp(max=rows.tokens.shape[1] - 1).flatten(1)).view(places.shape)
            return torch.nn.functional.one_hot(ids, vocab).float()

        replay.hidden = oracle  # type: ignore[method-assign]
        judged = judge(replay, torch.eye(vocab), [(tokens, roles)], 128, 2)
        counted = judged.leading[0][20:59]
        limits = np.minimum(7, 59 - np.arange(20, 59))
        assert (counted == limits).all() if expected else (counted == 0).all()
