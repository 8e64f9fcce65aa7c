"""Whole rounds on a GPU, as captured graphs: milliseconds by shape of tree and context, and of every stage.

A stage is timed as a graph of its own, all of them replayed in a round's order, so that each finds the caches as the
one before left them. What the host adds is the time of `Runner.round` beyond the graph's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from draftwood.batch import GRANULE, MAX_ROWS, ForwardInput, Nodes
from draftwood.bench.decoding import sequence_for
from draftwood.bench.measure import Sample, sample
from draftwood.bench.suites.ops import Limits
from draftwood.cache.registry import kv_label
from draftwood.decode.device_round import Work, nodes_of
from draftwood.decode.drafters.base import Drafter
from draftwood.decode.drafters.none import NoDrafter
from draftwood.decode.params import SamplingParams
from draftwood.decode.round import RoundOutcome
from draftwood.decode.sampling import KeyedDraw
from draftwood.decode.stats import ASSUMED
from draftwood.decode.tree import MAX_BUDGET, ROOT_ONLY, TreeShape
from draftwood.engine.config import METHODS, Shaping
from draftwood.engine.engine import Engine
from draftwood.engine.graphs import capture
from draftwood.engine.runner import Runner, assumption, check_assumed
from draftwood.errors import DraftwoodError, UsageError
from draftwood.planner.report import size_name
from draftwood.prefill.dense import read_prompt

STAGES = ("draft", "tree build", "verify", "accept", "commit")
PASS_ROWS = (1, 9, 16, 23, 41, 64)
GATED = GRANULE
"""Tokens of the sequence on which the gates look."""

_SEED, _FIRST = 1, 1


@dataclass(frozen=True)
class Wanted:
    """A round to time. name: as in "tree:22"; budget: its guesses, None for plain decoding."""

    name: str
    method: str
    budget: int | None


@dataclass(frozen=True)
class RoundRun:
    """One shape after one context over one pair of KV types, in milliseconds.

    rows: of the verify pass. start: tokens before the first timed round. device: the whole graph. host: what the wall
    clock shows beyond it. stages: by name. tokens: decided a round, on average.
    """

    name: str
    context: int
    rows: int
    start: int
    device: Sample
    host: Sample
    stages: dict[str, Sample]
    tokens: float
    kv: str

    @property
    def host_percent(self) -> float:
        """The host's share of a round."""
        return 100 * self.host.middle / (self.device.middle + self.host.middle)


@dataclass(frozen=True)
class PassRun:
    """The target's pass and head alone after one context over one pair of KV types: milliseconds by rows."""

    context: int
    passes: dict[int, Sample]
    kv: str


@dataclass(frozen=True)
class Conditions:
    """What makes the figures mean something. facts: `Engine.describe()`. assumed: tokens a round, None: found."""

    facts: dict[str, Any]
    synthetic: bool
    limits: Limits
    commit: str
    repeats: int
    prefill: bool
    assumed: float | None


def wanted(text: str, flag: str = "--rows-list") -> Wanted:
    """ "ar", "chain:15" or "tree:22"; a UsageError, which names the flag, for anything else."""
    name = text.strip().lower()
    method, _, budget = name.partition(":")
    if name == "ar":
        return Wanted(name, "ar", None)
    if method not in ("chain", "tree") or not budget.isascii() or not budget.isdigit() or len(budget) > 2:
        raise UsageError(f"{flag} names {text[:40]!r}, but a round is ar, chain:N or tree:N, as in tree:22.")
    if not 1 <= int(budget) <= MAX_BUDGET:
        raise UsageError(f"{flag} names {text[:40]!r}, but a round has 1 to {MAX_BUDGET} guesses.")
    return Wanted(f"{method}:{int(budget)}", method, int(budget))


def shape_of(one: Wanted, drafter: Drafter, assumed: float | None, flag: str = "--rows-list") -> TreeShape:
    """The tree of a round; a UsageError if the draft or the assumed acceptance (None: found) does not allow it."""
    seed = "half" if assumed is None else "full"
    shape = METHODS[one.method](Shaping(one.budget, chain_seed=seed), drafter.block_size)
    if one.method == "ar":
        return shape
    if one.budget != shape.budget:
        raise UsageError(f"{flag} names {one.name!r}, but this draft's chains have {shape.budget} guesses.")
    if assumed is not None:
        check_assumed(assumed, drafter, shape)
    return shape


def room(count: int, repeats: int) -> int:
    """Tokens that timing so many shapes may add to a context."""
    return MAX_ROWS * (1 + count) + count * (3 * repeats + 4) * (MAX_ROWS // 2)


def complaint(outcome: RoundOutcome, shape: TreeShape, max_depth: int, vocab: int) -> str | None:
    """What is wrong with a round's outcome in a few words, None if it is sane."""
    deepest, budget = (0, 0) if shape == ROOT_ONLY else (min(shape.deepest, max_depth), shape.budget)
    if len(outcome.emitted) != outcome.accepted + 1:
        return f"{len(outcome.emitted)} tokens of {outcome.accepted} accepted guesses"
    if not 0 <= outcome.accepted <= outcome.proposed_depth <= deepest:
        return f"{outcome.accepted} guesses accepted in a tree {outcome.proposed_depth} deep, {deepest} at most"
    if not outcome.proposed_depth <= outcome.nodes <= budget:
        return f"{outcome.nodes} guesses in a tree {outcome.proposed_depth} deep, {budget} at most"
    strange = next((token for token in outcome.emitted if not 0 <= token < vocab), None)
    return None if strange is None else f"token {strange} of a vocabulary of {vocab}"


class Rounds:
    """The rounds of an engine's target and draft on one sequence. A UsageError where they are not captured.

    assumed: tokens that a drafted round decides on average, None for what the target says. prefill: contexts are read.
    """

    @torch.inference_mode()
    def __init__(self, engine: Engine, capacity: int, assumed: float | None, prefill: bool) -> None:
        self.model, self.drafter = engine.target.model, engine.drafter
        self.assumed, self.prefill = assumed, prefill
        self.kv = kv_label(engine.kv)
        self.sequence = sequence_for(engine, capacity)
        if not self.sequence.on_device or not self.drafter.on_device:
            who = f"the draft {self.drafter.name!r}" if self.sequence.on_device else "this arithmetic or KV type"
            raise UsageError(f"bench round times captured rounds, which {who} does not allow; bench he times others.")
        told = None if assumed is None else assumption(assumed, self.model.device)
        self._plain = Runner(self.model, self.sequence, NoDrafter(), KeyedDraw(self.model.device))
        self._drafted = Runner(self.model, self.sequence, self.drafter, KeyedDraw(self.model.device), told)
        self._stages: dict[TreeShape, tuple[Work, list[torch.cuda.CUDAGraph]]] = {}
        self._passes: dict[int, torch.cuda.CUDAGraph] = {}

    def shape(self, one: Wanted) -> TreeShape:
        """Its tree; see `shape_of`."""
        return shape_of(one, self.drafter, self.assumed)

    @torch.inference_mode()
    def gate(self, one: Wanted) -> None:
        """A DraftwoodError unless a round is sane, and has the same outcome step by step and in two replays."""
        shape = self.shape(one)
        runner = self._runner(shape)
        self._fill(GATED)
        before = self.sequence.snapshot()
        outcomes, rows = [], []
        for attempt in range(3):
            self.sequence.restore(before)
            runner.drafter.fill_random(GATED, _SEED)
            _begin(runner)
            outcomes.append(runner.round(shape))  # the first one is not captured
            if attempt:
                rows.append(runner.captured(shape).row.clone())
        wrong = complaint(outcomes[0], shape, runner.drafter.max_depth, self.model.spec.vocab)
        if wrong is not None:
            raise DraftwoodError(f"a round of {one.name} gave {wrong}; no time is shown.")
        if outcomes[1:] != outcomes[:1] * 2 or not torch.equal(*rows):
            raise DraftwoodError(
                f"rounds of {one.name} from the same state differ ({outcomes[0].emitted[:4]}, then "
                f"{outcomes[1].emitted[:4]} and {outcomes[2].emitted[:4]}); no time is shown, please report this."
            )

    @torch.inference_mode()
    def start(self, context: int) -> None:
        """A context of so many tokens, read or made up."""
        if not self.prefill:
            self._fill(context)
            return
        generator = torch.Generator().manual_seed(_SEED)
        prompt = torch.randint(self.model.spec.vocab, (context,), generator=generator).to(self.model.device)
        self.sequence.truncate(0)
        self.drafter.start(prompt)
        read_prompt(self.model, self.sequence, prompt, self.drafter.wants, self.drafter.observe)

    @torch.inference_mode()
    def measure(self, one: Wanted, context: int, repeats: int) -> RoundRun:
        """Time rounds after a context that has been started; a context that was read grows by them."""
        shape = self.shape(one)
        runner = self._runner(shape)
        if not self.prefill:
            self._fill(context)
        _begin(runner)
        runner.round(shape)
        start, decided = self.sequence.length, 0
        device, host = [], []
        for _ in range(repeats):
            captured = runner.captured(shape)
            runner.drafter.make_room(nodes_of(shape))
            [milliseconds] = _replayed([captured.graph])
            decided += len(runner.rounds.outcome(captured.row).emitted)
            begun = time.perf_counter()
            decided += len(runner.round(shape).emitted)
            device.append(milliseconds)
            host.append(1000 * (time.perf_counter() - begun) - milliseconds)
        return RoundRun(
            one.name,
            context,
            nodes_of(shape),
            start,
            sample(device),
            sample(host),
            self._stage_times(runner, shape, repeats),
            decided / (2 * repeats),
            self.kv,
        )

    def _stage_times(self, runner: Runner, shape: TreeShape, repeats: int) -> dict[str, Sample]:
        runner.drafter.make_room(nodes_of(shape))
        if shape not in self._stages:
            work = Work(shape)
            steps = runner.rounds.steps.values()
            self._stages[shape] = work, [capture(lambda step=step: step(work)) for step in steps]  # type: ignore[misc]
        work, graphs = self._stages[shape]
        runs = []
        for _ in range(repeats + 1):
            runner.drafter.make_room(nodes_of(shape))
            runs.append(_replayed(graphs))
            runner.rounds.outcome(work.row.cpu())
        times = zip(*runs[1:], strict=True)  # the first one warms up
        return {name: sample(values) for name, values in zip(runner.rounds.steps, times, strict=True)}

    @torch.inference_mode()
    def passes(self, context: int, repeats: int) -> PassRun:
        """Time the target's passes alone, as chains of PASS_ROWS rows after the context; none of them is kept."""
        found = {}
        for rows in PASS_ROWS:
            if rows not in self._passes:
                self._passes[rows] = capture(lambda rows=rows: self._pass(rows), warm=True)  # type: ignore[misc]
            found[rows] = sample([_replayed([self._passes[rows]])[0] for _ in range(repeats + 1)][1:])
        return PassRun(context, found, self.kv)

    def _pass(self, rows: int) -> Tensor:
        chain = torch.arange(rows, device=self.model.device)
        depths = torch.arange(MAX_ROWS, device=self.model.device)
        ancestors = depths.where(depths <= chain[:, None], -1).to(torch.int32)
        inputs = ForwardInput(
            chain,
            self.sequence.committed + chain,
            chain - 1,
            (0, rows),
            self.drafter.wants,
            Nodes(chain, ancestors, chain.to(torch.int32)),
        )
        return self.model.logits(self.model.decode(inputs, self.sequence).hidden)

    def _runner(self, shape: TreeShape) -> Runner:
        return self._plain if shape == ROOT_ONLY else self._drafted

    def _fill(self, length: int) -> None:
        self.sequence.truncate(0)
        self.sequence.fill_random(length, _SEED)
        self.drafter.fill_random(length, _SEED)


def _begin(runner: Runner) -> None:
    runner.begin(SamplingParams())
    runner.pending.fill_(_FIRST)


def _replayed(graphs: Sequence[torch.cuda.CUDAGraph]) -> list[float]:
    """Milliseconds of each, replayed one behind the other."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(graphs) + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for graph, mark in zip(graphs, marks[1:], strict=True):
        graph.replay()
        mark.record()
    marks[-1].synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def table(rounds: Sequence[RoundRun], passes: Sequence[PassRun]) -> list[str]:
    """For each context its shapes down and their stages across, then the passes alone."""
    lines: list[str] = []
    several = len({alone.kv for alone in passes}) > 1
    for alone in passes:
        head = f"{'round':<10}{'rows':>5}{'whole':>9}{'host':>8}{'host %':>8}" + "".join(f"{s:>12}" for s in STAGES)
        over = f", KV {alone.kv}" if several else ""
        lines += [f"context {size_name(alone.context)}{over}", f"{head}{'tokens':>9}", "-" * (len(head) + 9)]
        for run in rounds:
            if (run.context, run.kv) == (alone.context, alone.kv):
                stages = "".join(f"{run.stages[stage].middle:>12.3f}" for stage in STAGES)
                whole = f"{run.device.middle:>9.2f}{run.host.middle:>8.3f}{run.host_percent:>8.1f}"
                lines.append(f"{run.name:<10}{run.rows:>5}{whole}{stages}{run.tokens:>9.2f}")
        cells = ", ".join(f"{rows} {took.middle:.2f}" for rows, took in alone.passes.items())
        lines += [f"the model's pass alone, by rows: {cells}", ""]
    times = [time for run in rounds for time in run.stages.values()]
    round_spread = max((run.device.spread_percent for run in rounds), default=0.0)
    widest = max((time.spread_percent for time in times), default=0.0)
    alone_spread = max((time.spread_percent for run in passes for time in run.passes.values()), default=0.0)
    return [
        *lines,
        "milliseconds, medians; whole: the round's graph; host: the wall clock beyond it; tokens: decided a round",
        f"widest spread: {round_spread:.0f} % of a round, {widest:.0f} % of a stage, {alone_spread:.0f} % of a pass",
    ]


def conditions(given: Conditions) -> list[str]:
    """The lines that make the numbers below them mean something."""
    facts = given.facts
    read = "a prompt of random tokens, read; it grows from round to round" if given.prefill else "random rows, not read"
    weights = "synthetic: random weights in true shapes and types" if given.synthetic else "real weights"
    return [
        f"target {facts['target']} ({facts['architecture']}), draft {facts['draft']} ({facts['draft_form']})",
        f"{weights}; context: {read}; KV {facts['kv']}, the draft's {facts['draft_kv']}",
        f"tokens a round: {_told(given)}",
        str(given.limits),
        f"draftwood {given.commit}, torch {torch.__version__}, {given.repeats} replays each, "
        f"{time.strftime('%Y-%m-%d')}",
    ]


def _told(given: Conditions) -> str:
    if given.assumed is not None:
        return f"{ASSUMED}, {given.assumed:g} on average"
    return "as the target decides, which means nothing with random weights" if given.synthetic else "as measured"


def as_json(given: Conditions, rounds: Sequence[RoundRun], passes: Sequence[PassRun]) -> dict[str, Any]:
    """The whole measurement for programs."""
    facts, limits = given.facts, given.limits
    assumed = {} if given.assumed is None else {"assumed_acceptance_length": given.assumed, "acceptance": ASSUMED}
    return {
        "bench": "round",
        "target": facts["target"],
        "draft": facts["draft"],
        "synthetic": given.synthetic,
        "context_rows": "read" if given.prefill else "random",
        "kv": facts["kv"],
        "draft_kv": facts["draft_kv"],
        "device": limits.device,
        "commit": given.commit,
        "repeats": given.repeats,
        **limits.as_json(),
        **assumed,
        "rounds": [
            {
                "kv": run.kv,
                "context": run.context,
                "start": run.start,
                "round": run.name,
                "rows": run.rows,
                "device_ms": round(run.device.middle, 4),
                "spread_percent": round(run.device.spread_percent, 1),
                "host_ms": round(run.host.middle, 4),
                "host_percent": round(run.host_percent, 2),
                "stages_ms": {name: round(took.middle, 4) for name, took in run.stages.items()},
                "stages_spread_percent": {name: round(took.spread_percent, 1) for name, took in run.stages.items()},
                "acceptance_length": round(run.tokens, 3),
            }
            for run in rounds
        ],
        "passes": [
            {
                "kv": run.kv,
                "context": run.context,
                "ms": {str(rows): round(took.middle, 4) for rows, took in run.passes.items()},
                "spread_percent": {str(rows): round(took.spread_percent, 1) for rows, took in run.passes.items()},
            }
            for run in passes
        ],
    }
