"""Milliseconds of a decode pass by its number of rows, for each weight form: what a candidate costs here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from draftwood.batch import ForwardInput
from draftwood.bench.decoding import sequence_for
from draftwood.bench.measure import Sample, sample
from draftwood.engine.engine import Engine

CONTEXT = 128
"""Committed tokens that every pass attends."""


@dataclass(frozen=True)
class FormRun:
    """One weight form. facts: `Engine.describe()`. blocks, head: milliseconds by rows."""

    facts: dict[str, Any]
    blocks: dict[int, Sample]
    head: dict[int, Sample]


def measure_form(engine: Engine, rows: tuple[int, ...], repeats: int, begin: Callable[[str], None]) -> FormRun:
    """Time passes of each row count, as a chain after CONTEXT tokens: all blocks, and the head alone."""
    model = engine.target.model
    sequence = sequence_for(engine, CONTEXT)
    tokens = torch.arange(CONTEXT, device=model.device) * 31 % model.spec.vocab
    model.prefill(ForwardInput(tokens, torch.arange(CONTEXT, device=model.device)), sequence)
    blocks: dict[int, list[float]] = {count: [] for count in rows}
    head: dict[int, list[float]] = {count: [] for count in rows}
    for repeat in range(repeats + 1):
        begin(f"{engine.config.dtype}: pass {repeat + 1} of {repeats + 1}")
        for count in rows:
            nodes = torch.arange(count, device=model.device)
            inputs = ForwardInput(tokens[:count], nodes + CONTEXT, nodes - 1)
            start = _now(model.device)
            hidden = model.decode(inputs, sequence).hidden
            middle = _now(model.device)
            model.logits(hidden)
            end = _now(model.device)
            if repeat:  # the first one warms up
                blocks[count].append(1000 * (middle - start))
                head[count].append(1000 * (end - middle))
    return FormRun(
        engine.describe(),
        {n: sample(times) for n, times in blocks.items()},
        {n: sample(times) for n, times in head.items()},
    )


def table(runs: list[FormRun]) -> list[str]:
    """Rows across, forms down; blocks + head in ms, and the widest spread of the blocks."""
    counts = list(runs[0].blocks)
    names = [f"{run.facts['weight_form']} ({run.facts['dtype']})" for run in runs]
    width = max(len(name) for name in ["weight form", *names])
    lines = [f"{'weight form':<{width}}" + "".join(f"{_rows(count):>16}" for count in counts)]
    lines.append("-" * len(lines[0]))
    for name, run in zip(names, runs, strict=True):
        cells = "".join(f"{f'{run.blocks[n].middle:.1f} + {run.head[n].middle:.1f}':>16}" for n in counts)
        lines.append(f"{name:<{width}}{cells}")
    worst = max(run.blocks[n].spread_percent for run in runs for n in counts)
    lines.append("milliseconds a pass, median: all layers + the head that scores the vocabulary")
    lines.append(f"widest spread of the layers' times: {worst:.0f} % of their median")
    return lines


def conditions(runs: list[FormRun], commit: str, repeats: int) -> list[str]:
    """The lines that make the numbers below them mean something."""
    facts = runs[0].facts
    return [
        f"target {facts['target']} ({facts['architecture']}), {CONTEXT} tokens of context, KV {facts['kv']}",
        f"device {facts['device']}, {facts['threads']} threads, draftwood {commit}, {repeats} timed passes each",
    ]


def as_json(runs: list[FormRun], commit: str, repeats: int) -> dict[str, Any]:
    """The whole measurement for programs."""
    return {
        "bench": "passes",
        "target": runs[0].facts["target"],
        "device": runs[0].facts["device"],
        "threads": runs[0].facts["threads"],
        "commit": commit,
        "repeats": repeats,
        "forms": [
            {
                "dtype": run.facts["dtype"],
                "weight_form": run.facts["weight_form"],
                "blocks_ms": {str(n): round(s.middle, 3) for n, s in run.blocks.items()},
                "head_ms": {str(n): round(s.middle, 3) for n, s in run.head.items()},
            }
            for run in runs
        ],
    }


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
