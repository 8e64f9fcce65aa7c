"""KL divergence against bits a value, a labelled point for each KV type. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from draftwood.bench.suites.kv import REFERENCE, Row
from draftwood.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TICKS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 32)


def blank() -> Figure:
    """An empty figure; a UsageError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "--out draws a picture with matplotlib, which is not installed; install draftwood[plots], or leave "
            "--out out."
        ) from None
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write a PNG. A row that does not differ from the reference has no place on a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    figure = blank()
    axes = figure.add_subplot()
    for name, marker, colour, filled, offset, align, chosen in (
        ("K and V alike", "o", "#1f4e79", True, (-6, -4), "right", [r for r in rows if r.case.rotated and _alike(r)]),
        ("K and V differ", "D", "#c55a11", True, (7, -3), "left", [r for r in rows if not _alike(r)]),
        ("without rotation", "o", "#8a8a8a", False, (7, -3), "left", [r for r in rows if not r.case.rotated]),
    ):
        points = [row for row in chosen if row.kl > 0]
        axes.plot(
            [row.bits for row in points],
            [row.kl for row in points],
            marker,
            color=colour,
            markerfacecolor=colour if filled else "white",
            label=name,
        )
        for row in points:
            label = row.case.label.removesuffix(" unrotated")
            axes.annotate(
                label, (row.bits, row.kl), offset, textcoords="offset points", fontsize=9, color=colour, ha=align
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="bits a value, mean of K and V",
        ylabel=f"mean KL divergence from {REFERENCE}, nats",
        title=title,
    )
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=120)


def _alike(row: Row) -> bool:
    key, value = row.case.kv
    return key is value
