"""Whole greedy runs of the official reference with DFlash drafts: the emitted ids and the acceptance lengths."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftwood import Engine, SamplingParams
from draftwood.cache.registry import KV_TYPES
from tests.conftest import oracle_path
from tests.models.test_oracle import HALF_GAP

FILES = {"file": None, "q8": "{draft}.Q8_0.dflash.gguf", "q8_causal_false": "{draft}-causal-false.Q8_0.dflash.gguf"}
CONFIGS = {"causal_false": "config.is_causal_false.json", "causal_true": "config.is_causal_true.json"}


@cache
def runs() -> list[dict[str, Any]]:
    root = oracle_path()
    if root is None:
        return []
    recorded = json.loads((root / "draft" / "e2e.json").read_text())["runs"]
    return [run for run in recorded if run["draft"].startswith("d1-")]


def draft_path(root: Path, run: dict[str, Any], scratch: Path) -> Path:
    """The draft file or directory that a run used."""
    name = FILES.get(run["variant"])
    if name is not None:
        return root / name.format(draft=run["draft"])
    if run["variant"] == "file":
        return root / run["draft"]
    directory = scratch / run["variant"]
    shutil.copytree(root / run["draft"], directory)
    shutil.copy(directory / CONFIGS[run["variant"]], directory / "config.json")
    return directory


def load(
    root: Path, draft: Path, device: str, kv: str = "f32", draft_kv: str = "f32", dtype: str = "float32"
) -> Engine:
    target = str(root / "t-a.F32.gguf")
    return Engine.load(target, draft=str(draft), dtype=dtype, kv=kv, draft_kv=draft_kv, max_context=512, device=device)


@pytest.mark.parametrize("index", range(24))
def test_the_reference_run(oracle: Path, tmp_path: Path, index: int, device: str) -> None:
    run = runs()[index]
    root = oracle / "draft"
    engine = load(root, draft_path(root, run, tmp_path), device)
    params = SamplingParams(max_tokens=64, ignore_eos=True)
    events = list(engine.stream(run["prompt"], params, method="chain"))
    emitted = [token for event in events for token in event.token_ids]
    assert emitted == run["emitted"]
    lengths = [len(event.token_ids) for event in events[1:]]
    block = max(run["block_rows"])
    whole = sum(rows == block for rows in run["block_rows"])
    # The reference narrows its block near the end and then proposes other tokens; every round before is the same.
    assert whole > 5
    assert lengths[:whole] == run["acceptance"][:whole]


def check_fast_run(root: Path, index: int, scratch: Path, device: str, gap: float) -> None:
    """Drafts change no token, and where the reference chose otherwise, our two best are closer than `gap`."""
    run = runs()[index]
    engine = load(root, draft_path(root, run, scratch), device, dtype="auto")
    params = SamplingParams(max_tokens=64, ignore_eos=True)
    plain = engine.generate(run["prompt"], params, method="ar").token_ids
    for method in ("chain", "tree"):
        assert engine.generate(run["prompt"], params, method=method).token_ids == plain
    logits = engine.logits([*run["prompt"], *run["emitted"]])[len(run["prompt"]) - 1 : -1]
    second, best = np.sort(logits, 1)[:, -2:].T
    other = logits.argmax(1) != np.array(run["emitted"])
    assert not (other & (best - second > gap)).any()


@pytest.mark.gpu
@pytest.mark.parametrize("index", range(24))
def test_the_reference_run_by_kernels(oracle: Path, tmp_path: Path, index: int, gpu: str) -> None:
    check_fast_run(oracle / "draft", index, tmp_path, gpu, HALF_GAP)


@pytest.mark.parametrize("draft", ["d1-a", "d1-b"])
def test_a_tree_accepts_at_least_as_much_and_says_the_same(oracle: Path, draft: str, device: str) -> None:
    root = oracle / "draft"
    engine = load(root, root / f"{draft}.F32.dflash.gguf", device)
    prompt = next(run["prompt"] for run in runs() if run["draft"] == draft)
    for temperature in (0.0, 0.8):
        params = SamplingParams(max_tokens=96, temperature=temperature, ignore_eos=True)
        plain = engine.generate(prompt, params, method="ar")
        chain = engine.generate(prompt, params, method="chain")
        tree = engine.generate(prompt, params, method="tree", budget=40)
        automatic = engine.generate(prompt, params, method="auto")
        assert plain.token_ids == chain.token_ids == tree.token_ids == automatic.token_ids
        assert tree.stats.acceptance_length >= chain.stats.acceptance_length - 0.3
        assert chain.stats.accept_percent == pytest.approx(
            100 * chain.stats.acceptance_length / engine.drafter.block_size
        )


QUICK_KV = ("q8_0", "q4_0", "tq3_0")


@pytest.mark.parametrize("kv", [pytest.param(k, marks=() if k in QUICK_KV else pytest.mark.slow) for k in KV_TYPES])
def test_every_kv_type_of_target_and_draft(oracle: Path, kv: str, device: str) -> None:
    """Chain and tree say what plain decoding says, and the draft is still of use."""
    root = oracle / "draft"
    engine = load(root, root / "d1-b.F32.dflash.gguf", device, kv, kv)
    prompt = next(run["prompt"] for run in runs() if run["draft"] == "d1-b")
    for temperature in (0.0, 0.8):
        params = SamplingParams(max_tokens=48, temperature=temperature, ignore_eos=True)
        plain = engine.generate(prompt, params, method="ar")
        for method in ("chain", "tree"):
            drafted = engine.generate(prompt, params, method=method)
            assert drafted.token_ids == plain.token_ids
            assert drafted.stats.acceptance_length > 1


@pytest.mark.parametrize("window", [0, 24])
def test_a_window_as_asked_changes_no_token(oracle: Path, window: int, device: str) -> None:
    root = oracle / "draft"
    prompt = next(run["prompt"] for run in runs() if run["draft"] == "d1-b")
    options = {"dtype": "float32", "max_context": 512, "device": device, "draft_window": window}
    engine = Engine.load(str(root / "t-a.F32.gguf"), draft=str(root / "d1-b.F32.dflash.gguf"), **options)
    assert any("as asked" in fact for name, fact in engine.drafter.facts().items() if name.startswith("note"))
    params = SamplingParams(max_tokens=48, ignore_eos=True)
    plain = engine.generate(prompt, params, method="ar")
    assert engine.generate(prompt, params, method="chain").token_ids == plain.token_ids
