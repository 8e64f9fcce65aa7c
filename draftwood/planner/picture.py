"""Memory against context as a picture, a line for each KV type. Needs matplotlib; torch-free."""

from __future__ import annotations

from pathlib import Path

from draftwood.errors import UsageError
from draftwood.planner.hardware import GIB
from draftwood.planner.plan import Plan
from draftwood.planner.report import shown, size_name
from draftwood.planner.search import Question, sweep

POINTS = 64


def draw(question: Question, plan: Plan, path: Path) -> None:
    """Write a PNG; a UsageError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "--png needs matplotlib, which is not installed; install draftwood[plots], or leave --png out."
        ) from None
    end = max(plan.context, min(max(row.longest for row in plan.rows), 2 * plan.context))
    contexts = [end * point // POINTS for point in range(1, POINTS + 1)]
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for rows in shown(plan):
        taken = sweep(question, rows[0].kv, plan.pick.draft, contexts)
        axes.plot(
            [context / 1024 for context in contexts],
            [size / GIB for size in taken],
            label=rows[0].kv_short,
            linewidth=3 if rows[0].kv == plan.pick.kv else 1.2,
        )
    axes.axhline(plan.limit / GIB, color="black", linestyle="--", label=f"usable: {plan.limit / GIB:.4g} GiB")
    axes.axvline(plan.context / 1024, color="grey", linestyle=":", label=f"asked for: {size_name(plan.context)}")
    draft = "without a draft" if plan.pick.draft is None else f"with the {plan.pick.draft_name} draft"
    axes.set(
        xlabel="context, thousands of tokens (1024)",
        ylabel="GiB, every lever pulled" if plan.sizes.levers else "GiB",
        title=f"{plan.target.name} on {plan.card.name} {draft}: planned, not measured",
        xlim=(0, end / 1024),
        ylim=(None, 1.15 * plan.limit / GIB),
    )
    axes.legend(title="KV type", fontsize="small")
    figure.savefig(path, dpi=120)
