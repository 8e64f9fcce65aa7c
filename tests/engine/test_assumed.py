"""Assumed acceptance: for made-up weights on a GPU, and nothing else; called so wherever it is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from draftwood import Engine, SamplingParams
from draftwood.cli.main import main
from draftwood.decode.drafters.base import Drafter
from draftwood.decode.drafters.lookup import LookupDrafter
from draftwood.decode.stats import ASSUMED
from draftwood.decode.tree import TreeShape
from draftwood.engine.config import EngineConfig
from draftwood.engine.runner import check_assumed
from draftwood.errors import UsageError

TINY = "synthetic:qwen3.6-27b-tiny"
DRAFT = f"{TINY}-dflash:q8_0"


@pytest.mark.parametrize("mean", [0.99, -1, float("nan"), float("inf"), True, "4"])
def test_only_a_number_from_one_on(mean: Any) -> None:
    with pytest.raises(UsageError, match=r"assume_acceptance is .* at least 1"):
        EngineConfig(TINY, assume_acceptance=mean)
    assert EngineConfig(TINY, assume_acceptance=1).assume_acceptance == 1


def test_refused_for_real_weights_and_on_a_cpu(vendored: Path) -> None:
    with pytest.raises(UsageError, match=r"made-up weights only, and those of l-b\.Q4_1\.gguf are real"):
        Engine.load(str(vendored / "models" / "l-b.Q4_1.gguf"), assume_acceptance=3.0, device="cpu")
    with pytest.raises(UsageError, match="captured on a GPU only, and this is a CPU"):
        Engine.load(TINY, assume_acceptance=3.0, device="cpu")


def drafter(on_device: bool = True) -> Drafter:
    return SimpleNamespace(name="dflash", on_device=on_device, max_depth=15)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("mean", "kind", "budget", "seed", "fragment"),
    [
        (16, "chain", 15, "half", None),
        (9, "best_first", 8, "full", None),
        (16, "best_first", 63, "full", None),
        (9.01, "best_first", 8, "full", "is 9.01, but a round with 8 guesses decides at most 9"),
        (17, "best_first", 63, "full", "at most 16"),
        (5, "chain", 3, "half", "at most 4"),
        (2, "best_first", 8, "half", "chain seed is 'half'"),
        (2, "best_first", 8, "none", "chain seed is 'none'"),
    ],
)
def test_no_more_than_the_spine_and_one(mean: float, kind: str, budget: int, seed: Any, fragment: str | None) -> None:
    shape = TreeShape(kind, budget, chain_seed=seed)
    if fragment is None:
        check_assumed(mean, drafter(), shape)
        return
    with pytest.raises(UsageError, match=fragment):
        check_assumed(mean, drafter(), shape)


def test_a_draft_on_the_host_is_refused() -> None:
    for one in (drafter(on_device=False), LookupDrafter()):
        with pytest.raises(UsageError, match="drafts on the host here"):
            check_assumed(2, one, TreeShape("chain", 8))


def test_a_request_of_such_an_engine_names_its_shape() -> None:
    """Made from parts, as loading one takes a GPU."""
    plain = Engine.load(TINY, draft=DRAFT, max_context=64, device="cpu")
    engine = Engine(replace(plain.config, assume_acceptance=3.0), plain.target, plain.drafter, "cpu")
    for method, seed, fragment in (
        ("auto", None, "--method chain, tree or ar"),
        ("tree", None, "drafts on the host"),
        ("chain", None, "drafts on the host"),
    ):
        with pytest.raises(UsageError, match=fragment):
            engine.stream([1, 2], method=method, chain_seed=seed)
    with pytest.raises(UsageError, match="half, full"):
        engine.stream([1, 2], method="tree", chain_seed="")
    params = SamplingParams(4, ignore_eos=True)
    ran = engine.generate([1, 2], params, method="ar")
    assert ran.token_ids == plain.generate([1, 2], params, method="ar").token_ids and ran.stats.assumed is None


def test_on_the_command_line(vendored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = str(vendored / "models" / "l-b.Q4_1.gguf")
    for command in (["run", real, "-p", "x"], ["bench", "he", "--target", real]):
        assert main([*command, "--assume-acceptance", "3", "--device", "cpu", "--draft", "lookup"]) == 2
        err = capsys.readouterr().err
        assert "made-up weights only" in err and err.count("\n") == 1


@pytest.mark.gpu
def test_rounds_decide_what_was_assumed(gpu: str) -> None:
    engine = Engine.load(TINY, draft=DRAFT, max_context=1024, assume_acceptance=3.5)
    params = SamplingParams(400, ignore_eos=True)
    for method, budget in (("tree", 8), ("tree", 40), ("chain", 15)):
        one, two = (engine.generate([1, 2, 3], params, method=method, budget=budget) for _ in range(2))
        assert one.token_ids == two.token_ids
        assert one.stats.assumed == one.stats.acceptance_length == 3.5  # 399 tokens after the first one: 114 rounds
        assert ASSUMED in one.stats.summary_lines()[1]
    plain = engine.generate([1, 2, 3], params, method="ar")
    assert plain.stats.acceptance_length == 1 and plain.stats.assumed is None
    with pytest.raises(UsageError, match="at most 3"):
        engine.generate([1], params, method="tree", budget=2)
    with pytest.raises(UsageError, match="chain seed is 'half'"):
        engine.generate([1], params, method="tree", chain_seed="half")
    with pytest.raises(UsageError, match="sampling options"):
        engine.generate([1], SamplingParams(8, temperature=1.0, top_k=5), method="tree")
