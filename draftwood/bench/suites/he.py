"""The HumanEval suite: the same prompts through one or more decoding methods of one loaded engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from draftwood.bench.gates import degenerate, difference
from draftwood.bench.measure import Sample, mean, sample
from draftwood.bench.prompts.humaneval import Prompt
from draftwood.decode.params import SamplingParams

if TYPE_CHECKING:
    from draftwood.engine.engine import Engine
    from draftwood.engine.request import GenerationResult

_WARM_UP_TOKENS = 32
"""Of every method: on a GPU the first round of a shape compiles, the second one is captured."""


@dataclass(frozen=True)
class Method:
    """A decoding method and what shapes its drafts; None leaves the choice to the engine."""

    name: str
    budget: int | None = None
    draft_temperature: float = 1.0


@dataclass(frozen=True)
class PromptRun:
    """One prompt through one method. Speeds in tokens a second, over all repeats."""

    name: str
    token_ids: tuple[int, ...]
    rounds: int
    acceptance_length: float
    accept_percent: float | None
    prefill: Sample
    decode: Sample
    degenerate: bool


@dataclass(frozen=True)
class MethodRun:
    """All prompts through one method.

    budget: the one that the engine used, 0 for plain decoding and for `auto`, whose reason is what it said last.
    assumed: the acceptance length that its rounds were told, None where the target decided.
    """

    method: str
    budget: int
    prompts: tuple[PromptRun, ...]
    reason: str = ""
    assumed: float | None = None

    @property
    def decode_tokens_per_second(self) -> float:
        """Mean of the prompts' medians."""
        return mean(prompt.decode.middle for prompt in self.prompts)

    @property
    def acceptance_length(self) -> float:
        """Mean over the prompts."""
        return mean(prompt.acceptance_length for prompt in self.prompts)

    @property
    def accept_percent(self) -> float | None:
        """Mean over the prompts that have one; None for plain decoding."""
        known = [prompt.accept_percent for prompt in self.prompts if prompt.accept_percent is not None]
        return mean(known) if known else None


@dataclass(frozen=True)
class SuiteResult:
    """What a suite measured; `differences` is empty if every method gave the same ids every time."""

    methods: tuple[MethodRun, ...]
    differences: tuple[str, ...]


def run_suite(
    engine: Engine,
    prompts: Sequence[Prompt],
    methods: Sequence[Method],
    params: SamplingParams,
    repeats: int = 1,
    report: Callable[[str], None] = lambda label: None,
) -> SuiteResult:
    """Run every prompt through every method, `repeats` times, side by side so that drift hits all alike.

    `report` is called with "prompt, method" before each run. Each method is warmed up first. Ids are compared
    with those of plain decoding (`ar`) where it is among the methods, else with those of the first one; those of a
    method whose acceptance is assumed with its own first ones.
    """
    warm_up = SamplingParams(max_tokens=min(_WARM_UP_TOKENS, params.max_tokens))
    for method in methods:
        report(f"warm-up, {method.name}")
        _generate(engine, prompts[0], method, warm_up)
    reference = next((index for index, method in enumerate(methods) if method.name == "ar"), 0)
    runs: list[list[PromptRun]] = [[] for _ in methods]
    budgets, reasons = [0] * len(methods), [""] * len(methods)
    assumed: list[float | None] = [None] * len(methods)
    differences: list[str] = []
    for prompt in prompts:
        results: list[list[GenerationResult]] = [[] for _ in methods]
        for _ in range(repeats):
            for index, method in enumerate(methods):
                report(f"{prompt.name}, {method.name}")
                results[index].append(_generate(engine, prompt, method, params))
        for index, method in enumerate(methods):
            assumed[index] = results[index][0].stats.assumed
            expected = results[reference if assumed[index] is None else index][0].token_ids
            for result in results[index]:
                parting = difference(expected, result.token_ids)
                if parting is not None:
                    differences.append(f"{prompt.name}, {method.name}: {parting}")
            runs[index].append(_summarise(prompt, results[index]))
            budgets[index] = results[index][0].stats.budget
            reasons[index] = results[index][-1].stats.reason
    measured = tuple(
        MethodRun(method.name, budget, tuple(prompt_runs), reason, told)
        for method, budget, prompt_runs, reason, told in zip(methods, budgets, runs, reasons, assumed, strict=True)
    )
    return SuiteResult(measured, tuple(differences))


def _generate(engine: Engine, prompt: Prompt, method: Method, params: SamplingParams) -> GenerationResult:
    return engine.generate(
        prompt.text,
        params,
        method=method.name,
        budget=method.budget,
        draft_temperature=method.draft_temperature,
    )


def _summarise(prompt: Prompt, results: Sequence[GenerationResult]) -> PromptRun:
    first = results[0]
    return PromptRun(
        name=prompt.name,
        token_ids=tuple(first.token_ids),
        rounds=first.stats.rounds,
        acceptance_length=first.stats.acceptance_length,
        accept_percent=first.stats.accept_percent,
        prefill=sample(result.stats.prefill_tokens_per_second for result in results),
        decode=sample(result.stats.decode_tokens_per_second for result in results),
        degenerate=degenerate(first.token_ids),
    )
