"""Milliseconds of a round's stages, stacked, a bar for each shape of tree and context. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from draftwood.bench.kv_picture import blank
from draftwood.bench.suites.rounds import STAGES, RoundRun
from draftwood.planner.report import size_name

_COLOURS = ("#1f4e79", "#7f9fbf", "#c55a11", "#e8b48a", "#6f6f6f", "#d0d0d0")


def draw(runs: Sequence[RoundRun], title: str, path: Path) -> None:
    """Write a PNG, a panel for each context."""
    figure = blank("--png")
    contexts = list(dict.fromkeys(run.context for run in runs))
    several = len({run.kv for run in runs}) > 1
    panels = figure.subplots(1, len(contexts), sharey=True, squeeze=False)[0]
    for axes, context in zip(panels, contexts, strict=True):
        shown = [run for run in runs if run.context == context]
        names = [f"{run.name} {run.kv}" if several else run.name for run in shown]
        bottom = [0.0] * len(shown)
        parts = {stage: [run.stages[stage].middle for run in shown] for stage in STAGES}
        parts["host"] = [run.host.middle for run in shown]
        for (name, heights), colour in zip(parts.items(), _COLOURS, strict=True):
            axes.bar(names, heights, bottom=bottom, label=name, color=colour)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        whole = [run.device.middle + run.host.middle for run in shown]
        axes.plot(names, whole, "k_", markersize=18, label="whole round and host")
        axes.set(title=f"context {size_name(context)}")
        axes.tick_params(axis="x", rotation=60)
        axes.grid(axis="y", alpha=0.25)
    panels[0].set_ylabel("milliseconds")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
