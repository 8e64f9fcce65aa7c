"""What a run leaves for people: the curves as a picture, and the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draftwood.errors import UsageError
from draftwood.training.fit import Point
from draftwood.training.recipe import Recipe


def draw_curves(points: Sequence[Point], evaluation: Mapping[str, Any], path: Path) -> None:
    """Loss, acceptance and the slots of the result as one PNG; a UsageError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "the curves need matplotlib, which is not installed; install draftwood[plots], or leave the stage card out."
        ) from None
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    steps = [point.step for point in points]
    losses = [point.loss for point in points]
    left.plot(steps, losses, color="#8a8a8a", linewidth=0.6)
    left.plot(steps, smoothed(losses), color="#1f4e79", linewidth=1.6)
    ceiling = 1.3 * max(smoothed(losses)[len(losses) // 10 :])
    left.set(title="loss", xlabel="step", ylim=(0, ceiling))
    middle.plot(steps, smoothed([point.tau_anchor for point in points]), color="#1f4e79", label="tokens a round (tau)")
    middle.set(title="on the training text, before each step", xlabel="step", ylim=(1, None))
    share = middle.twinx()
    share.plot(
        steps, smoothed([100 * point.first_slot for point in points]), color="#c55a11", label="first slot right, %"
    )
    share.set(ylim=(0, 100))
    handles = [*middle.get_lines(), *share.get_lines()]
    middle.legend(handles, [str(line.get_label()) for line in handles], loc="lower right", frameon=False)
    slots = range(1, len(evaluation["slot_right"]) + 1)
    right.plot(slots, [100 * value for value in evaluation["slot_right"]], color="#1f4e79", label="right")
    right.plot(
        slots,
        [100 * value for value in evaluation["slot_conditional"]],
        color="#c55a11",
        label="right, if all slots before are",
    )
    right.set(title="held-out text, by slot", xlabel="slot", ylabel="%", ylim=(0, 100))
    right.legend(frameon=False)
    for axis in (left, middle, right):
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


def smoothed(values: Sequence[float], memory: float = 0.9) -> list[float]:
    """Running mean whose past fades by `memory` an entry, without a start at zero."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = memory * total + value, memory * weight + 1
        out.append(total / weight)
    return out


def card(
    recipe: Recipe,
    manifest: Mapping[str, Any],
    points: Sequence[Point],
    evaluation: Mapping[str, Any],
    agreement: Mapping[str, float],
    conditions: Mapping[str, Any],
) -> str:
    """The model card, Markdown.

    conditions: date, hardware, commit and what else the run was made under.
    """
    draft, fit = recipe.draft, recipe.fit
    last = points[-1]
    lines = [
        f"# {recipe.name}",
        "",
        f"A DFlash draft for `{recipe.target}`, trained by `draftwood train`. It proposes, the target decides: its",
        "tokens are those of plain decoding whatever the draft says.",
        "",
        "| | |",
        "|---|---|",
        f"| draft | {draft.layers} layers, block {draft.block}, reads target layers "
        f"{', '.join(map(str, draft.taps))} (from 0), "
        f"{'causal' if draft.causal else 'not causal'} inside the block |",
        f"| proposes from | {draft.shortlist or 'all'} tokens |",
        f"| steps | {last.step} of {fit.rows} x {fit.anchors} anchors, {last.seconds / 60:.1f} minutes |",
        f"| loss | {fit.weighting} {fit.strength:g}; {fit.optimiser}, rate {fit.rate:g} |",
        f"| recipe | SHA-256 {recipe.sha256()[:16]}, seed {recipe.seed} |",
        *(f"| {name} | {value} |" for name, value in conditions.items()),
        "",
        "## Text",
        "",
        "All of it was written by the target itself, from prompts that this project composes. No benchmark text: a",
        "sequence that shares 13 tokens in a row with one was dropped.",
        "",
        *_manifest_lines(manifest),
        "",
        "## Held-out text",
        "",
        f"{evaluation['sequences']} sequences whose prompts' sources were kept out of the training.",
        "",
        "| | tokens a round |",
        "|---|---|",
        f"| greedy text | {evaluation['tau_chain_greedy']:.2f} |",
        f"| text sampled at T {recipe.text.temperature:g} | {evaluation['tau_chain_sampled']:.2f} |",
        *(
            [f"| greedy, proposing from the shortlist | {evaluation['tau_chain_shortlist']:.2f} |"]
            if "tau_chain_shortlist" in evaluation
            else []
        ),
        *(f"| greedy, {name} | {value:.2f} |" for name, value in evaluation["by_part"].items()),
        "",
        "Controls, each a deliberate mistake or a stand-in for the draft (greedy text):",
        "",
        "| control | tokens a round |",
        "|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in evaluation["controls"].items()),
        "",
        "Loop control: "
        f"{evaluation['loops']['tau_without_best']:.2f} tokens a round without the best 5 % of the sequences; "
        f"{100 * evaluation['loops']['whole_block_tokens']:.0f} % of the tokens come from rounds in which every slot "
        "was right.",
        "",
        f"The engine with this file: {agreement['engine']:.2f} tokens a round over {agreement['prompts']:.0f} of these "
        f"prompts; the training code, on the same weights and text: {agreement['training']:.2f}.",
        "",
        "By slot, in percent:",
        "",
        "| slot | " + " | ".join(str(slot + 1) for slot in range(len(evaluation["slot_right"]))) + " |",
        "|---" * (len(evaluation["slot_right"]) + 1) + "|",
        "| right | " + " | ".join(f"{100 * value:.0f}" for value in evaluation["slot_right"]) + " |",
        "| right, if all before are | "
        + " | ".join(f"{100 * value:.0f}" for value in evaluation["slot_conditional"])
        + " |",
        "",
    ]
    return "\n".join(lines)


def _manifest_lines(manifest: Mapping[str, Any]) -> list[str]:
    """Counts of the text, one line a part."""
    lines = ["| part | sequences | answer tokens |", "|---|---|---|"]
    lines += [
        f"| {name} | {entry['sequences']} | {entry['answer_tokens']} |" for name, entry in manifest["parts"].items()
    ]
    lines += ["", f"SHA-256 of the text: `{manifest['sha256']}`."]
    return lines
