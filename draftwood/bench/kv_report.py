"""The figures of `bench kv` as a table for a terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from draftwood.bench.suites.kv import REFERENCE, Row
from draftwood.models.spec import ModelSpec

_HEADS = ("KV type", "bits", "bytes", "K", "V", "mean", "99.9 %", "same", "AL")
_UNITS = ("", "a value", "a token", "error", "error", "KL", "KL", "top, %", "")
_WIDTHS = (14, 8, 8, 9, 9, 9, 8, 8, 6)


@dataclass(frozen=True)
class Conditions:
    """What was measured on. facts: `Engine.describe()`. tokens: those compared. n_gen: 0 without acceptance lengths."""

    facts: Mapping[str, Any]
    spec: ModelSpec
    commit: str
    text: str
    text_sha256: str
    tokens: int
    window: int
    complete: bool
    n_gen: int
    prompts_sha256: str


def conditions(given: Conditions) -> list[str]:
    """The lines that make the numbers below them mean something."""
    facts, spec = given.facts, given.spec
    lines = [
        f"target {facts['target']} ({facts['architecture']}, {sum(spec.attention)} of {spec.layers} layers attend, "
        f"{spec.kv_heads} KV heads of {spec.head_dim}), dtype {facts['dtype']}",
        f"device {facts['device']}, {facts['threads']} threads, draftwood {given.commit}",
        f"text {given.text_sha256[:16]}: {given.tokens:,} tokens in windows of {given.window:,} of {given.text}",
    ]
    if given.n_gen:
        lines += [
            f"AL: draft {facts['draft']}, as a chain, greedy, at most {given.n_gen} tokens a prompt",
            f"prompts {given.prompts_sha256[:16]}; in every run the tokens of plain decoding over the same types",
        ]
    return lines if given.complete else [*lines, "INTERRUPTED: what was measured until then"]


LEGEND = {
    "K, V error": "length of the rounding error, relative to the rows that the model stored",
    "KL": f"how far the next token's odds are from {REFERENCE}'s, in nats; one token in a thousand is above 99.9 %",
    "same top": f"tokens whose likeliest successor is that over {REFERENCE}",
    "AL": "tokens decided in a pass with the draft; each type writes its own text, so it scatters",
}


def legend() -> list[str]:
    """What the names of the columns mean."""
    return [f"{name:<11} {meaning}" for name, meaning in LEGEND.items()]


def table(rows: Sequence[Row]) -> list[str]:
    """A line for each case."""
    lines = [_line(_HEADS), _line(_UNITS)]
    lines.append("-" * len(lines[0]))
    return [*lines, *(_line(_cells(row)) for row in rows)]


def markdown(given: Conditions, rows: Sequence[Row]) -> str:
    """The whole report."""
    names = [f"{head} {unit}".strip() for head, unit in zip(_HEADS, _UNITS, strict=True)]
    return "\n".join(
        [
            "# KV types: what each costs in fidelity",
            "",
            *(f"- {line}" for line in conditions(given)),
            "",
            f"| {' | '.join(names)} |",
            "|---" + "|---:" * (len(names) - 1) + "|",
            *(f"| {' | '.join(_cells(row))} |" for row in rows),
            "",
            *(f"- {name}: {meaning}" for name, meaning in LEGEND.items()),
            "",
        ]
    )


def as_json(given: Conditions, rows: Sequence[Row]) -> dict[str, Any]:
    """The whole measurement for programs; KL in nats."""
    facts, spec = given.facts, given.spec
    return {
        "bench": "kv",
        "target": facts["target"],
        "draft": facts["draft"] if given.n_gen else None,
        "device": facts["device"],
        "dtype": facts["dtype"],
        "commit": given.commit,
        "layers": sum(spec.attention),
        "kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "text": given.text,
        "text_sha256": given.text_sha256,
        "tokens": given.tokens,
        "window": given.window,
        "complete": given.complete,
        "reference": REFERENCE,
        "n_gen": given.n_gen,
        "prompts_sha256": given.prompts_sha256,
        "rows": [_row_json(row) for row in rows],
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "kv": row.case.kv_name,
        "rotated": row.case.rotated,
        "bits": row.bits,
        "bytes_per_token": row.token_bytes,
        "key_error": _rounded(row.key_error),
        "value_error": _rounded(row.value_error),
        "kl_mean": _rounded(row.kl),
        "kl_p999": _rounded(row.kl_tail),
        "same_top": round(row.same_top, 5),
        "acceptance_length": None if row.acceptance_length is None else round(row.acceptance_length, 4),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _cells(row: Row) -> list[str]:
    return [
        row.case.label,
        f"{row.bits:.4g}",
        str(row.token_bytes),
        *(f"{value:.2g}" for value in (row.key_error, row.value_error, row.kl, row.kl_tail)),
        f"{100 * row.same_top:.2f}",
        "" if row.acceptance_length is None else f"{row.acceptance_length:.2f}",
    ]


def _line(cells: Sequence[str]) -> str:
    first, *others = (f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
    return f"{cells[0]:<{len(first)}}{''.join(others)}".rstrip()
