"""Measurements for people (two tables) and for programs (one JSON line)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from draftwood import __version__
from draftwood.bench.measure import mean
from draftwood.bench.suites.he import MethodRun, SuiteResult
from draftwood.decode.stats import ASSUMED

_RULE = "-" * 72
_ANY_WIDTH = 1000
_FLAG = "*"
_FLAG_NOTE = f"{_FLAG} the answer degenerates into repetition, which flatters acceptance and speed"


def commit() -> str:
    """The short git commit of the draftwood in use, `-dirty` if files differ; its version without git."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return f"v{__version__}"
    return described.stdout.strip()


def conditions(facts: Mapping[str, Any], commit_name: str, prompts_sha256: str, n_gen: int, repeats: int) -> list[str]:
    """The lines that make the numbers below them mean something. `facts` is `Engine.describe()`."""
    form = f" ({facts['draft_form']})" if facts.get("draft_form") else ""
    return [
        f"target {facts['target']} ({facts['architecture']}), draft {facts['draft'] or 'none'}{form}",
        f"device {facts['device']}, {facts['threads']} threads, dtype {facts['dtype']}, "
        f"weights {facts['weight_form']}, KV {facts['kv']}, context {facts['max_context']}",
        f"draftwood {commit_name}, prompts {prompts_sha256[:16]}, greedy, at most {n_gen} tokens a prompt, "
        f"{'one run' if repeats == 1 else f'median of {repeats} runs'} each",
    ]


def method_table(run: MethodRun) -> list[str]:
    """One method's prompts in the layout of SPEC-dflash 7.1, with the MEAN row and the range lines."""
    lines = [_row("prompt", "steps", "AL", "pct%", "prefill", "decode"), _RULE]
    for prompt in run.prompts:
        lines.append(
            _row(
                prompt.name + (_FLAG if prompt.degenerate else ""),
                str(prompt.rounds),
                f"{prompt.acceptance_length:.2f}",
                _percent(prompt.accept_percent),
                f"{prompt.prefill.middle:.1f}",
                f"{prompt.decode.middle:.2f}",
            )
        )
    lines.append(_RULE)
    lines.append(
        _row(
            "MEAN",
            "",
            f"{run.acceptance_length:.2f}",
            _percent(run.accept_percent),
            f"{mean(prompt.prefill.middle for prompt in run.prompts):.1f}",
            f"{run.decode_tokens_per_second:.2f}",
        )
    )
    lengths = [prompt.acceptance_length for prompt in run.prompts]
    speeds = [prompt.decode.middle for prompt in run.prompts]
    lines.append("")
    lines.append(f"commit/step range: {min(lengths):.2f} - {max(lengths):.2f}")
    lines.append(f"tok/s range: {min(speeds):.2f} - {max(speeds):.2f}")
    spread = max(prompt.decode.spread_percent for prompt in run.prompts)
    if spread:
        lines.append(f"largest spread of a prompt's runs: {spread:.1f} %")
    if run.assumed is not None:
        lines.append(_assumed_line(run))
    sound = [prompt for prompt in run.prompts if not prompt.degenerate]
    if len(sound) < len(run.prompts):
        lines.append(_FLAG_NOTE)
        lines.append(
            f"MEAN of the {len(sound)} others: AL {mean(p.acceptance_length for p in sound):.2f}, "
            f"{mean(p.decode.middle for p in sound):.2f} tok/s"
        )
    return lines


def agreement(runs: Sequence[MethodRun], each: int) -> str:
    """What the gate found of so many runs of each method."""
    told = [run for run in runs if run.assumed is not None]
    if not told:
        return f"identical tokens in all {len(runs) * each} runs"
    names = ", ".join(label(run) for run in told)
    return f"identical tokens in all runs but those of {names}, which agree among themselves; {ASSUMED}"


def comparison(runs: Sequence[MethodRun], console: Console) -> Table | str:
    """All methods side by side: as a table, or line by line where `console` is too narrow for it."""
    table = comparison_table(runs)
    needed = Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table).maximum
    return table if needed <= console.width else "\n".join(comparison_lines(runs))


def comparison_lines(runs: Sequence[MethodRun]) -> list[str]:
    """The comparison in at most 40 columns: a prompt's name, then a line a method."""
    plain = next((run for run in runs if run.method == "ar"), None)
    lines: list[str] = []
    for row, first in enumerate(runs[0].prompts):
        lines.append(first.name + (_FLAG if first.degenerate else ""))
        for run in runs:
            prompt = run.prompts[row]
            base = plain.prompts[row].decode.middle if plain else None
            lines.append(_narrow(run, _cells(run, prompt.decode.middle, prompt.acceptance_length, base)))
    if len(runs[0].prompts) > 1:
        lines.append("MEAN")
        base = plain.decode_tokens_per_second if plain else None
        lines += [_narrow(run, _cells(run, run.decode_tokens_per_second, run.acceptance_length, base)) for run in runs]
    note = _caption(runs)
    return lines if note is None else [*lines, note]


def _narrow(run: MethodRun, cells: list[str]) -> str:
    speed, length, gain = [*cells, "", ""][:3]
    return f"  {label(run):<8} {speed:>7} tok/s {length and f'AL {length:>5}'} {gain}".rstrip()


def legend(runs: Sequence[MethodRun]) -> list[str]:
    """What the names of methods and columns mean, for a reader who has not met them."""
    meanings = {
        "ar": "plain decoding: one token a pass, no guesses",
        "chain": "up to {} guesses in one line are checked in a pass",
        "tree": "up to {} guesses that may branch are checked in a pass",
        "auto": "whichever promises most before each pass; at the end {}",
    }
    lines = [f"{label(run):<9} {meanings[run.method].format(run.budget or run.reason)}" for run in runs]
    return [
        *lines,
        *(f"{label(run):<9} {_assumed_line(run)}" for run in runs if run.assumed is not None),
        f"{'AL':<9} tokens decided in a pass on average; plain decoding decides one",
        f"{'tok/s':<9} tokens written a second, reading the prompt not counted",
    ]


def comparison_table(runs: Sequence[MethodRun]) -> Table:
    """All methods side by side, a row a prompt, speed-ups against plain decoding where it was measured."""
    plain = next((run for run in runs if run.method == "ar"), None)
    table = Table(title="decode speed, tokens a second", caption=_caption(runs), title_justify="left")
    table.add_column("prompt", no_wrap=True)
    for run in runs:
        table.add_column(f"{label(run)}\ntok/s", justify="right", no_wrap=True)
        if run.method != "ar":
            table.add_column("\nAL", justify="right", no_wrap=True)
            if plain:
                table.add_column("\nspeed-up", justify="right", no_wrap=True)
    for row, first in enumerate(runs[0].prompts):
        cells = [first.name + (_FLAG if first.degenerate else "")]
        for run in runs:
            prompt = run.prompts[row]
            base = plain.prompts[row].decode.middle if plain else None
            cells += _cells(run, prompt.decode.middle, prompt.acceptance_length, base)
        table.add_row(*cells)
    if len(runs[0].prompts) > 1:
        table.add_section()
        base = plain.decode_tokens_per_second if plain else None
        means = [_cells(run, run.decode_tokens_per_second, run.acceptance_length, base) for run in runs]
        table.add_row("MEAN", *(cell for cells in means for cell in cells))
    return table


def json_line(
    facts: Mapping[str, Any], commit_name: str, prompts: str, prompts_sha256: str, n_gen: int, result: SuiteResult
) -> str:
    """The one line that ends `bench he`. Speeds in tokens a second; `budget` only where drafts are made."""
    return json.dumps(
        {
            "bench": "he",
            "target": facts["target"],
            "draft": facts["draft"],
            "device": facts["device"],
            "dtype": facts["dtype"],
            "commit": commit_name,
            "prompts": prompts,
            "prompts_sha256": prompts_sha256,
            "n_gen": n_gen,
            "methods": [_method_json(run) for run in result.methods],
        }
    )


def label(run: MethodRun) -> str:
    """How a table names a method: with the budget where it has one."""
    return f"{run.method} {run.budget}" if run.budget else run.method


def _method_json(run: MethodRun) -> dict[str, Any]:
    row: dict[str, Any] = {"method": run.method}
    if run.budget:
        row["budget"] = run.budget
    row["decode_tokens_per_second"] = round(run.decode_tokens_per_second, 3)
    row["acceptance_length"] = round(run.acceptance_length, 4)
    if run.assumed is not None:
        row |= {"assumed_acceptance_length": run.assumed, "acceptance": ASSUMED}
    row["prompts"] = [
        {
            "name": prompt.name,
            "rounds": prompt.rounds,
            "acceptance_length": round(prompt.acceptance_length, 4),
            "accept_percent": None if prompt.accept_percent is None else round(prompt.accept_percent, 2),
            "prefill_tokens_per_second": round(prompt.prefill.middle, 3),
            "decode_tokens_per_second": round(prompt.decode.middle, 3),
            "degenerate": prompt.degenerate,
        }
        for prompt in run.prompts
    ]
    return row


def _cells(run: MethodRun, speed: float, length: float, base: float | None) -> list[str]:
    cells = [f"{speed:.1f}"]
    if run.method != "ar":
        cells.append(f"{length:.2f}")
        if base is not None:
            cells.append(f"{speed / base:.2f}x" if base else "n/a")
    return cells


def _caption(runs: Sequence[MethodRun]) -> str | None:
    notes = [_FLAG_NOTE] if any(prompt.degenerate for run in runs for prompt in run.prompts) else []
    notes += [ASSUMED] if any(run.assumed is not None for run in runs) else []
    return "; ".join(notes) or None


def _assumed_line(run: MethodRun) -> str:
    return f"{ASSUMED}: rounds were told to decide {run.assumed:g} tokens on average"


def _row(prompt: str, steps: str, length: str, percent: str, prefill: str, decode: str) -> str:
    return f"{prompt:<28}  {steps:>6}  {length:>6}  {percent:>6}  {prefill:>8}  {decode:>8}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f}"
