"""The suite compares with plain decoding, side by side, every repeat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from draftwood.bench.prompts.humaneval import Prompt
from draftwood.bench.suites.he import Method, run_suite
from draftwood.decode.params import SamplingParams
from tests.cli.fakes import Behaviour, FakeEngine

PROMPTS = [Prompt("a", "x"), Prompt("b", "xyz")]
METHODS = [Method("tree", 22), Method("ar")]
PARAMS = SamplingParams(max_tokens=20)


@pytest.fixture
def behaviour() -> Iterator[Behaviour]:
    FakeEngine.behaviour = Behaviour()
    yield FakeEngine.behaviour
    FakeEngine.behaviour = Behaviour()


def test_order_and_figures(behaviour: Behaviour) -> None:
    labels: list[str] = []
    engine = FakeEngine("model.gguf", "lookup")
    result = run_suite(engine, PROMPTS, METHODS, PARAMS, repeats=2, report=labels.append)
    assert labels == ["warm-up, tree", "warm-up, ar"] + ["a, tree", "a, ar"] * 2 + ["b, tree", "b, ar"] * 2
    assert result.differences == ()
    tree, plain = result.methods
    assert (tree.method, tree.budget, plain.budget) == ("tree", 22, 0)
    assert [prompt.name for prompt in tree.prompts] == ["a", "b"]
    assert plain.acceptance_length == 1.0 and plain.accept_percent is None
    assert tree.accept_percent == pytest.approx(50.0)
    assert tree.decode_tokens_per_second == pytest.approx(19 / 2.0)


def test_ar_is_the_reference_wherever_it_stands(behaviour: Behaviour) -> None:
    behaviour.wrong = ("tree",)
    result = run_suite(FakeEngine("model.gguf", None), PROMPTS, METHODS, PARAMS)
    assert [line.split(":")[0] for line in result.differences] == ["a, tree", "b, tree"]


def test_without_ar_the_first_method_is_the_reference(behaviour: Behaviour) -> None:
    behaviour.wrong = ("tree",)
    methods = [Method("chain"), Method("tree")]
    result = run_suite(FakeEngine("model.gguf", None), PROMPTS, methods, PARAMS)
    assert all(line.split(":")[0].endswith(", tree") for line in result.differences)
    assert len(result.differences) == 2


def test_what_is_assumed_is_compared_with_itself_alone(behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour.wrong = ("tree",)
    engine = FakeEngine("model.gguf", None)
    generate = engine.generate

    def told(prompt: str, params: SamplingParams, **options: Any) -> Any:
        result = generate(prompt, params, **options)
        tree = options["method"] == "tree"
        return replace(result, stats=replace(result.stats, assumed=4.0)) if tree else result

    monkeypatch.setattr(engine, "generate", told)
    result = run_suite(engine, PROMPTS, METHODS, PARAMS, repeats=2)
    assert result.differences == ()
    assert [run.assumed for run in result.methods] == [4.0, None]


def test_repeats_must_agree_with_each_other(behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine("model.gguf", None)
    generate = engine.generate
    calls = 0

    def unsteady(prompt: str, params: SamplingParams, **options: object) -> object:
        nonlocal calls
        calls += 1
        return generate(prompt + "!" if calls == 3 else prompt, params, **options)

    monkeypatch.setattr(engine, "generate", unsteady)
    result = run_suite(engine, PROMPTS[:1], [Method("ar")], PARAMS, repeats=2)
    assert len(result.differences) == 1
