"""Speed, acceptance and memory against the length of context, a line for each KV type and draft. Needs matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from draftwood.bench.ctx_report import named
from draftwood.bench.kv_picture import blank
from draftwood.bench.suites.ctx import Row, Series
from draftwood.planner.hardware import GIB
from draftwood.planner.report import size_name

_COLOURS = ("#1f4e79", "#c55a11", "#3f7f3f", "#7f3f7f", "#6f6f6f", "#b8860b", "#008080", "#a02020")

_TITLE_WIDTH = 100
"""Characters of a title that a figure has room for beside each other."""

Line = tuple[Callable[[Row], float | None], str]
"""What a line shows of a row, and how it is drawn."""


def draw(series: Sequence[Series], title: str, path: Path) -> None:
    """Write a PNG of four panels; the last one shows memory, or milliseconds of a round where nothing counts memory."""
    figure = blank()
    rows = [row for one in series for row in one.rows]
    contexts = sorted({row.point.context for row in rows})
    note = ", dashed: plain" if any(row.drafted is not None for row in rows) else ""
    last = (
        ("GiB until then, dotted: planned", ((_peak, "-"), (_planned, ":")))
        if any(row.memory is not None for row in rows)
        else (f"ms a round{note}", ((_round, "-"), (_plain_round, "--")))
    )
    panels: tuple[tuple[str, tuple[Line, ...]], ...] = (
        (f"tokens written a second{note}", ((_written, "-"), (_plain_written, "--"))),
        ("tokens read a second", ((_read, "-"),)),
        ("tokens decided in a round", ((_decided, "-"),)),
        last,
    )
    for axes, (name, lines) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for number, one in enumerate(series):
            for value, style in lines:
                places = [row.point.context for row in one.rows]
                values = [value(row) for row in one.rows]
                colour = _COLOURS[number % len(_COLOURS)]
                axes.plot(places, values, style, color=colour, marker="o", markersize=4)  # None leaves a gap
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [size_name(context) for context in contexts], rotation=45, fontsize="small")
        axes.minorticks_off()
        axes.set(title=name, ylim=(0, 1.08 * axes.dataLim.ymax))
        axes.grid(alpha=0.25)
    names = [named(one, series) for one in series]
    what = "KV type" if len({one.draft for one in series}) == 1 else "KV type and draft"
    figure.legend(figure.axes[1].lines, names, title=what, loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(textwrap.fill(title, _TITLE_WIDTH), fontsize="medium")
    figure.savefig(path, dpi=120)


def _written(row: Row) -> float:
    return (row.drafted or row.plain).tokens_per_second


def _plain_written(row: Row) -> float | None:
    return None if row.drafted is None else row.plain.tokens_per_second


def _read(row: Row) -> float:
    return row.read_tokens_per_second


def _decided(row: Row) -> float:
    return (row.drafted or row.plain).acceptance_length


def _round(row: Row) -> float:
    return (row.drafted or row.plain).round.middle


def _plain_round(row: Row) -> float | None:
    return None if row.drafted is None else row.plain.round.middle


def _peak(row: Row) -> float | None:
    return None if row.memory is None else row.memory.peak / GIB


def _planned(row: Row) -> float | None:
    return None if row.memory is None else row.memory.planned / GIB
