"""A draft that comes with the package, written by the exporter, with a shortlist: by its name, and the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from draftwood import Engine, SamplingParams
from draftwood.engine import fetch
from draftwood.formats.gguf import GGUFFile
from draftwood.models.llama import read_spec
from draftwood.training.draft_net import DraftShape
from draftwood.training.export import DraftFacts, write_gguf

SHORTLIST = tuple(range(0, 512, 2))


@pytest.fixture
def engine(vendored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A tiny target and an untrained draft of it, in the place of the one that is shipped."""
    path = vendored / "models" / "l-b.Q4_1.gguf"
    target = GGUFFile.open(path)
    spec = read_spec(target)
    facts = DraftFacts(
        name="untrained",
        shape=DraftShape(
            layers=2,
            hidden=spec.hidden,
            ffn=64,
            heads=2,
            kv_heads=1,
            head_dim=32,
            eps=1e-6,
            rope_base=1e4,
            block=8,
            mask_token=1,
            taps=(0, spec.layers - 1),
            causal=True,
            windows=(None, None),
        ),
        context_length=512,
        shortlist=SHORTLIST,
    )
    draw = np.random.default_rng(0)
    tensors = {name: draw.standard_normal(shape).astype(np.float32) * 0.1 for name, shape in facts.shapes().items()}
    tensors["output_norm.weight"][:] = 30.0  # so that it is sure of what it says
    monkeypatch.setattr(fetch, "drafts_dir", lambda: tmp_path)
    write_gguf(tmp_path / fetch.registry(fetch.DRAFTS)["demo"].file, tensors, facts, target)
    return Engine.load(str(path), draft="demo", max_context=256)


def test_it_is_named_and_changes_no_token(engine: Engine) -> None:
    facts = engine.describe()
    assert facts["draft"] == "dflash:demo"
    assert facts["draft_form"] == f"block of 8 rows, proposes from 256 of {engine.target.model.spec.vocab} tokens"
    assert max(arm.depth for arm in engine.policy.arms) == 7
    for temperature in (0.0, 0.9):
        params = SamplingParams(max_tokens=60, temperature=temperature, seed=2, ignore_eos=True)
        plain = engine.generate([5, 6, 7, 8], params, method="ar").token_ids
        for method, budget in (("chain", None), ("chain", 3), ("tree", 3), ("tree", 22), ("auto", None)):
            result = engine.generate([5, 6, 7, 8], params, method=method, budget=budget)
            assert result.token_ids == plain, method
    assert result.stats.reason


def test_what_it_expects_reaches_the_policy(engine: Engine) -> None:
    policy = engine.policy
    drafting = next(arm for arm in policy.arms if arm.depth)
    policy.choose = lambda: drafting  # type: ignore[method-assign]  # on a slow machine it might never draft
    seen: list[tuple[float, int]] = []
    observe = policy.observe
    policy.observe = lambda arm, *rest: (seen.append((rest[3], rest[2])), observe(arm, *rest))[1]  # type: ignore[method-assign]
    engine.generate([5, 6, 7, 8], SamplingParams(max_tokens=60, ignore_eos=True), method="auto")
    assert any(expected > 0 for expected, _ in seen)
    assert all(0 <= expected <= nodes for expected, nodes in seen)
