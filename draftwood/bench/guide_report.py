"""The guide of `bench guide` for a terminal, as Markdown and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from draftwood.bench import ctx_report
from draftwood.bench.ctx_report import Conditions
from draftwood.bench.suites.ctx import Series
from draftwood.bench.suites.guide import Candidate, Entry, Room
from draftwood.decode.stats import ASSUMED
from draftwood.planner.hardware import GIB
from draftwood.planner.report import size_name

_HEADS = ("context", "take KV + draft", "rounds", "tok/s", "AL", "read s", "plan GiB", "fastest")
_WIDTHS = (8, 20, 10, 8, 6, 8, 9, 0)
_NOTE_WIDTH = 110


def fits(room: Room, whose: str) -> str:
    """What was taken to fit. whose: the memory."""
    space = f"{room.usable / GIB:.2f} of {room.whole / GIB:.2f} GiB ({whose})"
    return f"what fits: by the plan of an engine on a GPU, in {space}"


def table(entries: Sequence[Entry], given: Conditions) -> list[str]:
    """A line for each length, then what it leaves unsaid."""
    head = _line(_HEADS)
    lines = [head, "-" * 78, *(_line(_cells(entry, given)) for entry in entries), ""]
    said = (textwrap.wrap(note, _NOTE_WIDTH, subsequent_indent="  ") for note in notes(entries, given))
    return lines + [line for wrapped in said for line in wrapped]


def notes(entries: Sequence[Entry], given: Conditions) -> list[str]:
    """What does not fit or was not reached, the rule, and what the columns are; each is a line, however long."""
    lines = []
    for entry in entries:
        wide = [c for c in entry.candidates if not c.planned.fits]
        if wide:
            sizes = ", ".join(f"{c.name} {c.planned.total / GIB:.2f}" for c in wide)
            lines.append(f"{size_name(entry.point.context)}: no room for (planned GiB) {sizes}")
        missed = [c.name for c in entry.candidates if c.planned.fits and c.measured is None]
        if entry.pick is not None and entry.pick.levers:
            lines.append(f"{size_name(entry.point.context)}: {entry.pick.name} with {', '.join(entry.pick.levers)}")
        if missed:
            lines.append(f"{size_name(entry.point.context)}: not measured: {', '.join(missed)}")
    told = "" if given.trial.assumed is None else f"; {ASSUMED}"
    return [
        *lines,
        "take: the KV type that keeps the context best of those that fit (above 8.5 bits a value none is better), with "
        "the draft that is the fastest beside it; types below 3 bits only where nothing else fits",
        "fastest: the pair that writes the most, where it is another one, against what is taken",
        f"tok/s, AL, read s: tokens written a second, tokens decided in a round, and seconds to read the context; "
        f"measured, of the faster of plain decoding and {given.trial.name}{told}",
        "plan GiB: the planner's bytes for that context and its answer on a GPU, not measured",
    ]


def markdown(entries: Sequence[Entry], given: Conditions, fits: str, series: Sequence[Series]) -> str:
    """The guide, then all that was measured."""
    lines = ["# Which KV type and draft for which context", "", f"- {fits}"]
    lines += [*(f"- {line}" for line in ctx_report.conditions(given)), "", f"| {' | '.join(_HEADS)} |"]
    lines += ["|---:|---|---|" + "---:|" * (len(_HEADS) - 4) + "---|"]
    lines += [f"| {' | '.join(_cells(entry, given))} |" for entry in entries]
    lines += ["", *(f"- {line}" for line in notes(entries, given)), ""]
    below = (f"#{line}" if line.startswith("## ") else line for line in ctx_report.body(given, series))
    return "\n".join([*lines, "## Speed by length of context", *below])


def as_json(entries: Sequence[Entry], given: Conditions, limit: int, series: Sequence[Series]) -> dict[str, Any]:
    """The guide and the whole measurement for programs. limit: bytes that may be used."""
    measured = ctx_report.as_json(given, series)
    guide = [
        {
            "context": entry.point.context,
            "read_tokens": entry.point.tokens,
            "pick": None if entry.pick is None else _candidate_json(entry.pick),
            "fastest": None if entry.fastest is None else _candidate_json(entry.fastest),
            "candidates": [_candidate_json(candidate) for candidate in entry.candidates],
        }
        for entry in entries
    ]
    return measured | {"bench": "guide", "limit_bytes": limit, "guide": guide}


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    made = {
        "kv": candidate.planned.kv_short,
        "draft": candidate.draft,
        "planned_bytes": candidate.planned.total,
        "fits": candidate.planned.fits,
        "levers": list(candidate.planned.levers),
        "measured": candidate.measured is not None,
    }
    if candidate.measured is None:
        return made
    best = candidate.best
    return made | {
        "guesses": candidate.guesses,
        "tokens_per_second": round(best.tokens_per_second, 3),
        "acceptance_length": round(best.acceptance_length, 4),
        "read_seconds": round(candidate.measured.read_seconds, 4),
    }


def _cells(entry: Entry, given: Conditions) -> list[str]:
    context, pick = size_name(entry.point.context), entry.pick
    if pick is None or pick.measured is None or entry.fastest is None:
        least = min(entry.candidates, key=lambda candidate: candidate.planned.total)
        why = "not measured" if least.planned.fits else "nothing fits"
        return [context, why, "", "", "", "", f"{least.planned.total / GIB:.2f}", ""]
    gain = entry.fastest.best.tokens_per_second / pick.best.tokens_per_second
    return [
        context,
        pick.name,
        given.trial.name if pick.guesses else "ar",
        f"{pick.best.tokens_per_second:.1f}",
        f"{pick.best.acceptance_length:.2f}",
        f"{pick.measured.read_seconds:.2f}",
        f"{pick.planned.total / GIB:.2f}",
        "" if entry.fastest is pick else f"{entry.fastest.name} {gain:.2f}x",
    ]


def _line(cells: Sequence[str]) -> str:
    context, take, rounds, *numbers, fastest = cells
    padded = [f"{cell:>{width}}" for cell, width in zip(numbers, _WIDTHS[3:-1], strict=True)]
    left = f"{context:>{_WIDTHS[0] - 1}}  {take:<{_WIDTHS[1]}} {rounds:<{_WIDTHS[2]}}"
    return f"{left}{''.join(padded)}  {fastest}".rstrip()
