"""A plan for people (a table, the pick and why) and for programs (JSON). Torch-free."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

from draftwood.planner.hardware import GIB
from draftwood.planner.plan import Plan, Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_ANY_WIDTH = 1000
_MOST_BITS = 16.0
"""Types with more bits a value are in the JSON only: nobody plans a card for them."""


_SOURCES = {"ours": "not measured on this card", "reference": "the reference system's, not ours"}


def heading(plan: Plan, width: int) -> list[str]:
    """What is planned, the pick and why."""
    best = plan.pick
    draft = "no draft" if best.draft is None else f"{best.draft_name} draft"
    guesses = f"{best.budget} guesses a round" if best.budget else "plain decoding"
    on = "" if best.draft is None else " on code"
    return _wrapped(
        [
            (
                "plan",
                f"{plan.target.about}, {size_name(plan.context)} tokens; {plan.card.name}: {_gib(plan.limit)} of "
                f"{_gib(plan.memory)} GiB",
            ),
            ("pick", f"KV {best.kv_short}, {draft}, {guesses}: at most {best.speed:.0f} tokens/s{on}"),
            ("why", plan.why),
        ],
        width,
    )


def table(plan: Plan, console: Console) -> Table | str:
    """All combinations: as a table, or line by line where `console` is too narrow for it."""
    from rich.measure import Measurement

    made = _table(plan)
    needed = Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), made).maximum
    return made if needed <= console.width else "\n".join(_lines(plan))


def _table(plan: Plan) -> Table:
    from rich.table import Table

    made = Table(box=None, padding=0, pad_edge=False, header_style="bold underline")
    made.add_column("  KV type", no_wrap=True)
    made.add_column("KV", justify="right", no_wrap=True, min_width=6)
    for name in dict.fromkeys(row.draft_name for row in plan.rows):
        title = "no draft" if name == "none" else f"{name} draft"
        for column, width in ((title, len(title) + 2), ("ms", 6), ("tok/s", 6), ("up to", 7)):
            made.add_column(column, justify="right", no_wrap=True, min_width=width)
    for rows in shown(plan):
        picked = any(row is plan.pick for row in rows)
        cells = [("> " if picked else "  ") + rows[0].kv_short, f"{_gib(rows[0].parts['kv'], 2)}"]
        for row in rows:
            cells += [_gib(row.total, 2) + _marks(plan, row), *_times(row), size_name(row.longest)]
        made.add_row(*cells, style="bold" if picked else "")
    return made


def _marks(plan: Plan, row: Row) -> str:
    """A letter for each lever that the row pulls."""
    levers = plan.sizes.levers
    return "".join(lever.mark if lever.name in row.levers else "" for lever in levers).ljust(len(levers))


def _times(row: Row) -> list[str]:
    return [f"{1000 * row.round:.1f}", f"{row.speed:.0f}"] if row.fits else ["no", "room"]


def _lines(plan: Plan) -> list[str]:
    """The table in at most 40 columns: the pick's draft only, a line for each KV type."""
    lines = []
    for rows in shown(plan):
        row = next(row for row in rows if row.draft is plan.pick.draft)
        times = f"{1000 * row.round:.1f} ms {row.speed:>4.0f} tok/s" if row.fits else "no room"
        mark = ">" if row is plan.pick else " "
        lines.append(f"{mark} {row.kv_short:<6} {_gib(row.total, 2)} GiB{_marks(plan, row)} {times}")
    return lines


def shown(plan: Plan) -> list[list[Row]]:
    """The rows by KV types, most bits first; of types with equal bits the first, and none with more than 16."""
    by_kv: dict[str, list[Row]] = {}
    for row in plan.rows:
        by_kv.setdefault(row.kv_name, []).append(row)
    width = plan.target.spec.head_dim
    shown: dict[float, list[Row]] = {}
    for rows in by_kv.values():
        bits = sum(kind.bits(width) for kind in rows[0].kv) / 2
        if len(by_kv) == 1 or bits <= _MOST_BITS:
            shown.setdefault(bits, rows)
    return list(shown.values())


def details(plan: Plan, width: int) -> list[str]:
    """What the pick consists of, the levers, remarks, and the flags that ask for it."""
    sizes = sorted(plan.pick.parts.items(), key=lambda item: -item[1])
    rows = [
        ("table", f"predicted: GiB, ms a round, longest context; {_SOURCES[plan.sizes.name]}"),
        ("GiB", " ".join(f"{_PARTS.get(name, name)} {_short(size)}" for name, size in sizes)),
        ("levers", _levers(plan)),
        *(("note", remark) for remark in plan.remarks),
        ("flags", _flags(plan) if plan.sizes.runs else ""),
    ]
    return _wrapped([row for row in rows if row[1]], width)


def _levers(plan: Plan) -> str:
    """Those that the pick pulls with their price, then those that are left; each with the GiB it frees."""
    pulled, left = [], []
    for lever in plan.sizes.levers:
        said = f"{lever.mark} {lever.what} {_short(plan.lever_bytes.get(lever.name, 0))}"
        if lever.name in plan.pick.levers:
            pulled.append(f"{said} ({lever.price})")
        elif lever.name in plan.lever_bytes:
            left.append(said)
    kinds = (("pulled", pulled), ("left", left))
    return "; ".join(f"{kind}: {', '.join(levers)}" for kind, levers in kinds if levers)


def _flags(plan: Plan) -> str:
    """What asks `run` and `chat` for the pick."""
    best = plan.pick
    key, value = (kind.name for kind in best.kv)
    draft_key, draft_value = (kind.name for kind in best.draft_kv)
    draft = "" if best.draft is None else f" -ctkd {draft_key} -ctvd {draft_value}"
    if best.draft is not None and best.draft.window is not None:
        draft += f" --draft-swa {best.draft.window or 'off'}"
    return f"-ctk {key} -ctv {value}{draft} --max-ctx {plan.context}"


def _wrapped(rows: list[tuple[str, str]], width: int) -> list[str]:
    """A label and a text each, the text in a column of its own."""
    indent = " " * (max(len(label) for label in _LABELS) + 1)
    lines: list[str] = []
    for label, text in rows:
        lines += textwrap.wrap(
            text, max(width, 2 * len(indent)), initial_indent=label.ljust(len(indent)), subsequent_indent=indent
        )
    return lines


_LABELS = ("plan", "pick", "why", "table", "GiB", "levers", "note", "flags")
_PARTS = {"kv": "KV", "draft_kv": "draft K/V", "node_states": "node states"}


def to_json(plan: Plan) -> dict[str, Any]:
    """The whole plan; bytes, milliseconds and tokens a second."""
    return {
        "model": plan.target.name,
        "card": plan.card.name,
        "vram_bytes": plan.memory,
        "usable_bytes": plan.limit,
        "context": plan.context,
        "sizes": plan.sizes.name,
        "rows": [_row_json(row) for row in plan.rows],
        "pick": _row_json(plan.pick),
        "why": plan.why,
        "levers": [
            {
                "name": lever.name,
                "price": lever.price,
                "bytes": plan.lever_bytes.get(lever.name, 0),
                "pulled": lever.name in plan.pick.levers,
            }
            for lever in plan.sizes.levers
        ],
        "remarks": list(plan.remarks),
        "measured": False,
    }


def json_line(plan: Plan) -> str:
    """`to_json` as one line."""
    return json.dumps(to_json(plan))


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "kv": row.kv_name,
        "draft": row.draft_name,
        "draft_kv": None if row.draft is None else "/".join(kind.name for kind in row.draft_kv),
        "fits": row.fits,
        "total_bytes": row.total,
        "parts": row.parts,
        "levers": list(row.levers),
        "budget": row.budget,
        "step_ms": round(1000 * row.step, 3),
        "round_ms": round(1000 * row.round, 3),
        "tokens_per_round": round(row.tokens, 3),
        "tokens_per_second": round(row.speed, 1),
        "longest_context": row.longest,
    }


def size_name(tokens: int) -> str:
    """131072 -> "128K"; above 10K a broken thousand is left out, above a million all but one digit."""
    if tokens >= 1 << 20:
        return f"{tokens / (1 << 20):.1f}M"
    return f"{tokens // 1024}K" if tokens % 1024 == 0 or tokens >= 10 * 1024 else f"{tokens:,}"


def _short(nbytes: int) -> str:
    """GiB with two digits, as in "1.71" and ".67"."""
    return _gib(nbytes, 2).removeprefix("0")


def _gib(nbytes: int, digits: int | None = None) -> str:
    return f"{nbytes / GIB:.4g}" if digits is None else f"{nbytes / GIB:.{digits}f}"
