"""Plain reading and plain decoding at several depths, in the layout of `llama-bench`.

"pp512 @ d4096" reads 512 tokens behind 4096 and scores the last one, "tg128" writes 128, one a pass. The tokens are
random, as there; the depth is read before the clock starts. On a GPU what was read is also a share of the matrix rate
that was measured in the same run, by the operations of the matrices and of causal attention.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from draftwood.batch import GRANULE
from draftwood.bench.decoding import WARM_UP, Decoding, now, sequence_for
from draftwood.bench.suites import ops
from draftwood.cache.sequence import Sequence as SequenceState
from draftwood.decode.drafters.none import NoDrafter
from draftwood.decode.sampling import KeyedDraw
from draftwood.decode.tree import ROOT_ONLY
from draftwood.engine.engine import Engine
from draftwood.engine.runner import Runner
from draftwood.errors import UsageError
from draftwood.planner import inventory
from draftwood.prefill.dense import read_prompt

DEPTHS = {"cpu": (0,), "cuda": (0, 4096, 16384)}
"""What is timed if nothing is said, as far as the model's context allows."""

MOST_TOKENS = 1 << 16
_FIRST = 1


@dataclass(frozen=True)
class Test:
    """What one figure times. reads: whether `tokens` are read or written."""

    name: str
    reads: bool
    tokens: int


@dataclass(frozen=True)
class TestRun:
    """One test behind `depth` tokens: tokens a second, one figure a repeat. operations: of reading, counted."""

    test: Test
    depth: int
    speeds: tuple[float, ...]
    operations: int | None = None

    @property
    def label(self) -> str:
        """As llama-bench names it."""
        return f"{self.test.name} @ d{self.depth}" if self.depth else self.test.name

    @property
    def speed(self) -> float:
        """The mean, as in llama-bench."""
        return fmean(self.speeds)

    @property
    def deviation(self) -> float:
        """The standard deviation of the repeats, 0 of one."""
        return stdev(self.speeds) if len(self.speeds) > 1 else 0.0

    def share(self, limits: ops.Limits) -> float | None:
        """Percent of the matrix rate that reading reached; None of a test that writes."""
        if self.operations is None:
            return None
        return 100 * self.operations * self.speed / self.test.tokens / limits.rate


@dataclass(frozen=True)
class Subject:
    """What was timed. facts: `Engine.describe()`. nbytes, parameters: of the tensors in its file."""

    facts: dict[str, Any]
    synthetic: bool
    nbytes: int
    parameters: int
    backend: str


def parse_test(text: str) -> Test:
    """ "pp512" or "tg128"; a UsageError for anything else."""
    found = re.fullmatch(r"(pp|tg)([1-9][0-9]{0,5})", text.strip().lower())
    if found is None or int(found[2]) > MOST_TOKENS:
        raise UsageError(
            f"--tests names {text[:40]!r}, but a test is ppN (tokens to read) or tgN (to write), as in pp512, N up to "
            f"{MOST_TOKENS}."
        )
    return Test(found[0], found[1] == "pp", int(found[2]))


def check_depth(depth: int) -> int:
    """The depth, or a UsageError: passes that read start at multiples of GRANULE."""
    if depth % GRANULE:
        raise UsageError(f"--depths names {depth}, but a depth must be a multiple of {GRANULE}.")
    return depth


def depths_for(device: str, ends: int, tests: Sequence[Test], asked: Sequence[int] | None) -> list[int]:
    """The depths that were asked for, or those usual for the device; a UsageError where a model's context, which ends
    after so many tokens, does not hold them."""
    longest = max(test.tokens for test in tests)
    if asked is None:
        return [depth for depth in DEPTHS[device] if not depth or depth + longest <= ends]
    wrong = next((depth for depth in asked if depth + longest > ends), None)
    if wrong is not None:
        raise UsageError(f"--depths names {wrong}, but the model's context ends at {ends} tokens, the tests' included.")
    return list(asked)


def capacity(tests: Sequence[Test], depths: Sequence[int]) -> int:
    """Tokens that a sequence has to hold."""
    return max(depths) + max(test.tokens for test in tests) + WARM_UP


def subject(engine: Engine) -> Subject:
    """The engine's target, as far as a table names it."""
    tensors = engine.target.source.tensors.values()
    backend = "CPU" if engine.device == "cpu" else "ROCm" if torch.version.hip else "CUDA"
    return Subject(
        engine.describe(),
        engine.synthetic,
        sum(info.nbytes for info in tensors),
        sum(math.prod(info.shape) for info in tensors),
        backend,
    )


def limits_for(engine: Engine, tests: Sequence[Test]) -> ops.Limits | None:
    """What a GPU reaches, where one of the tests reads."""
    return ops.measure_limits() if engine.device != "cpu" and any(test.reads for test in tests) else None


def operations(target: inventory.Target, tokens: int, depth: int) -> int:
    """Of reading `tokens` behind `depth` and scoring the last: two a weight, and causal attention's two products."""
    head, spec = inventory.weights([target.head]), target.spec
    positions = tokens * depth + tokens * (tokens + 1) // 2
    attention = 4 * sum(spec.attention) * spec.heads * spec.head_dim * positions
    return 2 * (inventory.weights(target.matrices) - head) * tokens + 2 * head + attention


@torch.inference_mode()
def measure(
    engine: Engine, tests: Sequence[Test], depths: Sequence[int], repeats: int, begin: Callable[[str], None]
) -> list[TestRun]:
    """Each test at each depth, after a warm-up; `begin` is called with a label before each."""
    model = engine.target.model
    longest = max(test.tokens for test in tests)
    sequence = sequence_for(engine, capacity(tests, depths))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(model.spec.vocab, (max(depths) + longest,), generator=generator).to(model.device)
    empty, runs = sequence.mark(), []
    decoder = _decoder(engine, sequence)
    target = inventory.target_of(engine.target.source, engine.target.name)
    for depth in depths:
        begin(f"reading {depth} tokens of depth")
        sequence.rewind(empty)
        if depth:
            read_prompt(model, sequence, ids[:depth])
        there = sequence.mark()
        for test in tests:
            begin(f"{test.name} at depth {depth}")
            speeds = []
            for _ in range(repeats + 1):
                sequence.rewind(there)
                seconds = _read(engine, sequence, ids[depth : depth + test.tokens]) if test.reads else decoder(test)
                speeds.append(test.tokens / seconds)
            counted = operations(target, test.tokens, depth) if test.reads else None
            runs.append(TestRun(test, depth, tuple(speeds[1:]), counted))
    return runs


def _read(engine: Engine, sequence: SequenceState, ids: Tensor) -> float:
    """Seconds to read tokens and score the last one."""
    start = now(engine.device)
    engine.target.model.logits(read_prompt(engine.target.model, sequence, ids))
    return now(engine.device) - start


def _decoder(engine: Engine, sequence: SequenceState) -> Callable[[Test], float]:
    """What gives the seconds of a plain decoding from the sequence's state."""
    first = torch.tensor(_FIRST, device=engine.device)
    model = engine.target.model
    runner = Runner(model, sequence, NoDrafter(), KeyedDraw(engine.device)) if sequence.on_device else None
    decoding = Decoding(model, sequence, NoDrafter(), runner)

    def decode(test: Test) -> float:
        decoder = decoding.begin(first)
        before = sequence.mark()
        for _ in range(WARM_UP):
            decoder.round(ROOT_ONLY)
        sequence.rewind(before)
        start = now(engine.device)
        for _ in range(test.tokens):
            decoder.round(ROOT_ONLY)
        return now(engine.device) - start

    return decode


def table(about: Subject, runs: Sequence[TestRun]) -> list[str]:
    """A row for each test, aligned, as llama-bench prints them."""
    heads = ("model", "size", "params", "backend", "test", "t/s")
    cells = [
        (
            str(about.facts["target"]),
            _bytes(about.nbytes),
            _count(about.parameters),
            about.backend,
            run.label,
            f"{run.speed:.2f} ± {run.deviation:.2f}",
        )
        for run in runs
    ]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    left = (True, False, False, True, False, False)

    def line(row: Sequence[str]) -> str:
        padded = (
            f"{cell:<{width}}" if flush else f"{cell:>{width}}"
            for cell, width, flush in zip(row, widths, left, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rules = ("-" * width if flush else "-" * (width - 1) + ":" for width, flush in zip(widths, left, strict=True))
    return [line(heads), f"| {' | '.join(rules)} |", *map(line, cells)]


def shares(runs: Sequence[TestRun], limits: ops.Limits | None) -> list[str]:
    """A line for each test that read, and what it is a share of; none on a CPU."""
    if limits is None:
        return []
    lines = ["", f"{limits}; of these products, by the operations of matrices and causal attention:"]
    for run in runs:
        share = run.share(limits)
        if share is not None and run.operations is not None:
            lines.append(f"{run.label}: {run.operations / 1e12:.1f} TFLOP, {share:.1f} %")
    return lines


def conditions(about: Subject, commit: str, repeats: int) -> list[str]:
    """The lines that make the numbers below them mean something."""
    facts = about.facts
    weights = "synthetic: random weights in true shapes and types; " if about.synthetic else ""
    return [
        f"target {facts['target']} ({facts['architecture']}), no draft, {weights}random tokens",
        f"device {facts['device']}, {facts['threads']} threads, dtype {facts['dtype']}, "
        f"weights {facts['weight_form']}, KV {facts['kv']}",
        f"draftwood {commit}, torch {torch.__version__}, mean and deviation of {repeats} runs each after a warm-up",
    ]


def as_json(
    about: Subject, runs: Sequence[TestRun], commit: str, repeats: int, limits: ops.Limits | None = None
) -> dict[str, Any]:
    """The whole measurement for programs."""
    return {
        "bench": "baseline",
        "target": about.facts["target"],
        "synthetic": about.synthetic,
        "bytes": about.nbytes,
        "parameters": about.parameters,
        "backend": about.backend,
        "device": about.facts["device"],
        "dtype": about.facts["dtype"],
        "kv": about.facts["kv"],
        "commit": commit,
        "repeats": repeats,
        **({} if limits is None else limits.as_json()),
        "tests": [
            {
                "test": run.test.name,
                "depth": run.depth,
                "tokens_per_second": round(run.speed, 3),
                "deviation": round(run.deviation, 3),
                **_read_as_json(run, limits),
            }
            for run in runs
        ],
    }


def _read_as_json(run: TestRun, limits: ops.Limits | None) -> dict[str, Any]:
    if run.operations is None:
        return {}
    share = None if limits is None else run.share(limits)
    return {"operations": run.operations} | ({} if share is None else {"matrix_rate_percent": round(share, 2)})


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:.2f} MiB"


def _count(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
