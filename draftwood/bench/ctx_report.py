"""The figures of `bench ctx` as tables for a terminal, as Markdown and as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from draftwood.batch import GRANULE
from draftwood.bench.prompts.long import LongPrompt
from draftwood.bench.suites.ctx import Decoded, Row, Series, Trial
from draftwood.decode.stats import ASSUMED
from draftwood.planner.hardware import GIB
from draftwood.planner.report import size_name

_FLAG = "*"
_HEADS = ("context", "read s", "tok/s", "plain ms", "tok/s", "round ms", "tok/s", "AL", "gain", "GiB")
_WIDTHS = (7, 8, 8, 10, 8, 10, 8, 6, 7, 7)
_PLAIN_COLUMNS, _DRAFT_COLUMNS = 5, 9


@dataclass(frozen=True)
class Conditions:
    """What makes the figures mean something. facts: `Engine.describe()` with every draft. ended: what is missing and
    why, None if it is whole."""

    facts: Mapping[str, Any]
    synthetic: bool
    trial: Trial
    prompt: LongPrompt
    commit: str
    ended: str | None = None


def conditions(given: Conditions) -> list[str]:
    """The lines that make the numbers below them mean something."""
    facts, trial = given.facts, given.trial
    weights = "synthetic: random weights in true shapes and types" if given.synthetic else "real weights"
    runs = "one run" if trial.repeats == 1 else f"median of {trial.repeats} runs"
    how = f"draft {facts['draft']}{_draft_form(facts)}; {trial.name}, greedy"
    lines = [
        f"target {facts['target']} ({facts['architecture']}), {weights}",
        "no draft, greedy" if trial.name == "ar" else how,
        *([] if trial.assumed is None else [f"{ASSUMED}: rounds are told to decide {trial.assumed:g} on average"]),
        f"device {facts['device']}, {facts['threads']} threads, dtype {facts['dtype']}, weights {facts['weight_form']}",
        f"prompt {given.prompt.sha256[:16]}: {given.prompt.about}",
        f"draftwood {given.commit}, torch {torch.__version__}, {runs} of {trial.n_gen} tokens each, "
        f"{time.strftime('%Y-%m-%d')}",
    ]
    return lines if given.ended is None else [*lines, given.ended]


def caption(given: Conditions) -> str:
    """What a picture's title says."""
    facts, trial = given.facts, given.trial
    told = "" if trial.assumed is None else f"; {ASSUMED} ({trial.assumed:g})"
    made_up = " (random weights)" if given.synthetic else ""
    rounds = "plain decoding" if trial.name == "ar" else f"{trial.name} with {facts['draft']}"
    return f"{facts['target']}{made_up} on {facts['device']}, {rounds}{told}"


def legend(given: Conditions, series: Sequence[Series]) -> list[str]:
    """What the names of the columns mean, as far as there are such columns."""
    return [f"{name:<8} {meaning}" for name, meaning in _meanings(given, series).items()]


def _meanings(given: Conditions, series: Sequence[Series]) -> dict[str, str]:
    meanings = {
        "context": f"tokens before the answer; whole granules of {GRANULE} are read",
        "read": "seconds for the whole prompt up to there, and its tokens a second",
        "plain": "a pass that decides one token, and tokens written a second",
    }
    if given.trial.name != "ar":
        meanings |= {
            "round": f"a round of {given.trial.name}, and tokens written a second so",
            "AL": "tokens decided in a round on average"
            + ("" if given.trial.assumed is None else f"; {ASSUMED}")
            + ("; the tokens are those of plain decoding" if given.trial.assumed is None else ""),
            "gain": "tokens a second of rounds over those of plain decoding",
        }
    if _has_memory(series):
        meanings["GiB"] = "most memory until then by the driver's count, without what others had in use before"
    else:
        meanings["memory"] = "not shown: it is planned, and counted by the driver, on a GPU with --dtype auto only"
    if any(_degenerate(row) for one in series for row in one.rows):
        meanings[_FLAG] = "the answer degenerates into repetition, which flatters acceptance and speed"
    return meanings


def table(one: Series, trial: Trial, series: Sequence[Series]) -> list[str]:
    """One KV type with one draft: a line for each length."""
    columns = _columns(one, trial)
    head = _line([_HEADS[column] for column in columns], columns)
    lines = [title(one, trial, series), head, "-" * len(head)]
    lines += [_line([_cells(row)[column] for column in columns], columns) for row in one.rows]
    return [*lines, *_less_read(one), *_memory_lines(one)]


def title(one: Series, trial: Trial, series: Sequence[Series]) -> str:
    """What a table is of, one of several."""
    how = "plain decoding" if trial.name == "ar" else trial.name
    kept, room = f"KV {named(one, series)} ({one.bits:.4g} bits a value)", f"room for {size_name(one.capacity)} tokens"
    alike = len({other.places for other in series}) == 1
    return ", ".join([kept, how, room, *(one.places if alike else ())])


def comparison(series: Sequence[Series], trial: Trial) -> list[str]:
    """Milliseconds of a round by context: against the first context, and against the first series."""
    lines: list[str] = []
    width = max(len(named(one, series)) for one in series)
    for what in ("plain", *(() if trial.name == "ar" else (trial.name,))):
        lines.append(f"ms a round, {what}" + (f", {ASSUMED}" if what != "plain" and trial.assumed is not None else ""))
        for one in series:
            times = _times(one, what)
            first = next(iter(times.values()), 1.0)
            cells = [f"{size_name(context)} {ms:.2f} ({ms / first:.2f}x)" for context, ms in times.items()]
            lines.append(f"  {named(one, series):<{width}}  {', '.join(cells)}")
        base = _times(series[0], what)
        for one in series[1:]:
            shared = [(c, ms / base[c]) for c, ms in _times(one, what).items() if c in base]
            if shared:
                cells = [f"{size_name(context)} {ratio:.2f}x" for context, ratio in shared]
                lines.append(f"  {named(one, series)} over {named(series[0], series)}: {', '.join(cells)}")
    return lines


def markdown(given: Conditions, series: Sequence[Series]) -> str:
    """The whole report."""
    head = ["# Speed by length of context", "", *(f"- {line}" for line in conditions(given))]
    return "\n".join([*head, *body(given, series)])


def body(given: Conditions, series: Sequence[Series]) -> list[str]:
    """The report in Markdown behind its conditions; its headings are of the second level."""
    lines: list[str] = []
    for one in series:
        columns = _columns(one, given.trial)
        lines += ["", f"## {title(one, given.trial, series)}", "", f"| {' | '.join(_HEADS[c] for c in columns)} |"]
        lines += ["|" + "---:|" * len(columns)]
        lines += [f"| {' | '.join(_cells(row)[c] for c in columns)} |" for row in one.rows]
        lines += ["", *_less_read(one), *_memory_lines(one)]
    meanings = {(f"`{name}`" if name == _FLAG else name): meaning for name, meaning in _meanings(given, series).items()}
    listed = (f"- {name}: {meaning}" for name, meaning in meanings.items())
    return [*lines, "", "```", *comparison(series, given.trial), "```", "", *listed, ""]


def as_json(given: Conditions, series: Sequence[Series]) -> dict[str, Any]:
    """The whole measurement for programs; bytes, seconds and milliseconds."""
    facts, trial = given.facts, given.trial
    assumed = {} if trial.assumed is None else {"assumed_acceptance_length": trial.assumed, "acceptance": ASSUMED}
    return {
        "bench": "ctx",
        "target": facts["target"],
        "draft": None if trial.name == "ar" else facts["draft"],
        "draft_kv": facts["draft_kv"],
        "synthetic": given.synthetic,
        "device": facts["device"],
        "dtype": facts["dtype"],
        "commit": given.commit,
        "prompt": given.prompt.about,
        "prompt_sha256": given.prompt.sha256,
        "round": trial.name,
        "n_gen": trial.n_gen,
        "repeats": trial.repeats,
        "complete": given.ended is None,
        **assumed,
        "series": [series_json(one) for one in series],
    }


def series_json(one: Series) -> dict[str, Any]:
    """One series for programs."""
    return {
        "kv": one.kv,
        "bits": one.bits,
        "draft": one.draft,
        "capacity": one.capacity,
        "places": list(one.places),
        "rows": [_row_json(row) for row in one.rows],
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "context": row.point.context,
        "read_tokens": row.point.tokens,
        "read_seconds": round(row.read_seconds, 4),
        "read_tokens_per_second": round(row.read_tokens_per_second, 2),
        "plain": _decoded_json(row.plain),
        "drafted": None if row.drafted is None else _decoded_json(row.drafted),
        "peak_bytes": None if row.memory is None else row.memory.peak,
        "planned_bytes": None if row.memory is None else row.memory.planned,
    }


def _decoded_json(decoded: Decoded) -> dict[str, Any]:
    return {
        "round_ms": round(decoded.round.middle, 4),
        "spread_percent": round(decoded.round.spread_percent, 1),
        "acceptance_length": round(decoded.acceptance_length, 4),
        "tokens_per_second": round(decoded.tokens_per_second, 3),
        "degenerate": decoded.degenerate,
    }


def _cells(row: Row) -> list[str]:
    plain, drafted = row.plain, row.drafted
    cells = [
        size_name(row.point.context),
        f"{row.read_seconds:.2f}",
        _rate(row.read_tokens_per_second),
        f"{plain.round.middle:.2f}",
        _rate(plain.tokens_per_second) + (_FLAG if plain.degenerate else ""),
    ]
    if drafted is None:
        cells += [""] * (_DRAFT_COLUMNS - _PLAIN_COLUMNS)
    else:
        cells += [
            f"{drafted.round.middle:.2f}",
            _rate(drafted.tokens_per_second) + (_FLAG if drafted.degenerate else ""),
            f"{drafted.acceptance_length:.2f}",
            f"{drafted.tokens_per_second / plain.tokens_per_second:.2f}x",
        ]
    return [*cells, "" if row.memory is None else f"{row.memory.peak / GIB:.2f}"]


def _draft_form(facts: Mapping[str, Any]) -> str:
    """What there is to say of a draft that is a model."""
    return f" ({facts['draft_form']}, its KV {facts['draft_kv']})" if facts["draft_form"] else ""


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def _columns(one: Series, trial: Trial) -> list[int]:
    shown = list(range(_PLAIN_COLUMNS if trial.name == "ar" else _DRAFT_COLUMNS))
    return [*shown, _DRAFT_COLUMNS] if _has_memory([one]) else shown


def _line(cells: Sequence[str], columns: Sequence[int]) -> str:
    return "".join(f"{cell:>{_WIDTHS[column]}}" for cell, column in zip(cells, columns, strict=True))


def _less_read(one: Series) -> list[str]:
    """Where less was read than asked for."""
    less = [row.point for row in one.rows if row.point.tokens < row.point.context]
    return [f"of {size_name(point.context)} {point.tokens:,} tokens were read before the answer" for point in less]


def _memory_lines(one: Series) -> list[str]:
    """The peak against the plan, where there is one."""
    found = next((row.memory for row in reversed(one.rows) if row.memory is not None), None)
    if found is None:
        return []
    share = 100 * found.peak / found.planned
    return [f"peak {found.peak / GIB:.2f} GiB of {found.planned / GIB:.2f} GiB planned: {share:.1f} %"]


def _times(one: Series, what: str) -> dict[int, float]:
    """Milliseconds of a round by context."""
    decoded = {row.point.context: row.plain if what == "plain" else row.drafted for row in one.rows}
    return {context: found.round.middle for context, found in decoded.items() if found is not None}


def named(one: Series, series: Sequence[Series]) -> str:
    """The KV type, with the draft and what frees memory where these differ."""
    name = one.kv if len({other.draft for other in series}) == 1 else f"{one.kv} + {one.draft} draft"
    return name if len({other.places for other in series}) == 1 else ", ".join([name, *one.places])


def _has_memory(series: Sequence[Series]) -> bool:
    return any(row.memory is not None for one in series for row in one.rows)


def _degenerate(row: Row) -> bool:
    return row.plain.degenerate or (row.drafted is not None and row.drafted.degenerate)
