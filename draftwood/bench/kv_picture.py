"""KL divergence against bits a value, a labelled point for each KV type. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftwood.bench.suites.kv import REFERENCE, Row
from draftwood.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TICKS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 32)
_PLACES = [
    (far * x, far * y)
    for far in (8, 16, 26)
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1))
]
"""Where a label may stand, in points from its own, the nearest first."""


def blank(flag: str = "--out") -> Figure:
    """An empty figure; a UsageError, which names the flag, where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            f"{flag} draws a picture with matplotlib, which is not installed; install draftwood[plots], or leave "
            f"{flag} out."
        ) from None
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write a PNG. A row that does not differ from the reference has no place on a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    figure = blank()
    axes = figure.add_subplot()
    kinds = (
        ("K and V alike", "o", "#1f4e79", "#1f4e79", [row for row in rows if row.case.rotated and _alike(row)]),
        ("K and V differ", "D", "#c55a11", "#c55a11", [row for row in rows if not _alike(row)]),
        ("alike, without rotation", "o", "#6f6f6f", "white", [row for row in rows if not row.case.rotated]),
    )
    labels: list[tuple[Row, str]] = []
    for name, marker, colour, inside, chosen in kinds:
        points = [row for row in chosen if row.kl > 0]
        bits, kl = [row.bits for row in points], [row.kl for row in points]
        axes.plot(bits, kl, marker, color=colour, markerfacecolor=inside, label=name)
        labels += [(row, colour) for row in points]
    axes.set(
        xscale="log",
        yscale="log" if labels else "linear",
        xlabel="bits a value, mean of K and V",
        ylabel=f"mean KL divergence from {REFERENCE}, nats",
        title=title,
    )
    axes.margins(0.08)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.25)
    axes.legend()
    _label(figure, axes, labels)
    figure.savefig(path, dpi=120)


def _alike(row: Row) -> bool:
    key, value = row.case.kv
    return key is value


def _label(figure: Figure, axes: Any, labels: Sequence[tuple[Row, str]]) -> None:
    """Name the points, each in the nearest place that covers no other name and no point."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles where the axes are
    pixels = axes.transData.transform([(row.bits, row.kl) for row, _ in labels])
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in pixels]
    for row, colour in labels:
        for x, y in _PLACES:
            text = axes.annotate(
                row.case.label.removesuffix(" unrotated"),
                (row.bits, row.kl),
                (x, y),
                textcoords="offset points",
                fontsize=9,
                color=colour,
                ha="left" if x > 0 else "right" if x < 0 else "center",
                va="center" if y == 0 else "bottom" if y > 0 else "top",
            )
            box = text.get_window_extent().padded(2)
            if (x, y) == _PLACES[-1] or not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
