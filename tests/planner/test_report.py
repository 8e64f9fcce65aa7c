"""The plan as people and programs read it."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from draftwood.planner import report
from tests.planner.cases import GIB, K, planned


def shown(width: int, context: int = 256 * K, sizes: str = "ours", **more: object) -> list[str]:
    """Everything that is printed, in a terminal of this width."""
    made = planned(context, sizes, **more)
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(report.table(made, console), markup=False)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    return [*report.heading(made, width), *written.splitlines(), *report.details(made, width)]


@pytest.mark.parametrize("width", [40, 60, 79, 120])
@pytest.mark.parametrize("sizes", ["ours", "reference"])
def test_no_line_is_longer_than_the_terminal(width: int, sizes: str) -> None:
    lines = shown(width, sizes=sizes)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)


def test_the_table_is_a_table_where_there_is_room() -> None:
    lines = shown(79)
    header = next(line for line in lines if "KV type" in line and "context" in line)
    assert header.split() == [
        "KV",
        "type",
        "GiB",
        "GiB",
        "round",
        "tok/s",
        "context",
        "GiB",
        "round",
        "tok/s",
        "context",
    ]
    (picked,) = [line for line in lines if line.startswith("> ")]
    assert picked.split()[:3] == [">", "tq4_0", "4.07"]
    assert "no  room" in next(line for line in lines if line.startswith("  f16"))
    assert len(lines) <= 30


def test_a_narrow_terminal_gets_the_picks_draft_line_by_line() -> None:
    lines = shown(40)
    assert any(line.startswith("> tq4_0  23.15 GiB") for line in lines)
    assert not any("q4_k_m" in line and "GiB" in line for line in lines)


def test_what_is_said_is_honest() -> None:
    ours, reference = "\n".join(shown(200)), "\n".join(shown(200, sizes="reference"))
    assert "Planned buffers" in ours and "not measured" in ours
    assert "reference system's sizes" in reference and "not measured" in reference
    assert "flags  -ctk tq4_0 -ctv tq4_0 -ctkd q8_0 -ctvd q8_0 --max-ctx 262144" in ours
    assert "flags" not in reference and "levers" not in reference


def test_levers_say_what_they_are_and_whether_they_are_pulled() -> None:
    text = " ".join(" ".join(shown(200)).split())
    assert "t: token table in pinned host memory (0.67 GiB, pulled: microseconds a round)" in text
    assert "w: compact weight layout (1.46 GiB, pulled: its speed is not measured yet)" in text
    assert "d: draft K/V in four bits (0.28 GiB, not needed)" in text


def test_types_of_equal_bits_are_shown_once() -> None:
    names = [line.split()[0] for line in shown(79, 4 * K) if line.startswith("  ") and line[2:3].islower()]
    assert "f16" in names and not {"bf16", "f32"} & set(names)


def test_json_is_the_agreed_one() -> None:
    made = planned(256 * K)
    read = json.loads(report.json_line(made))
    assert (read["model"], read["vram_bytes"], read["context"]) == ("qwen3.6-27b", 24 * GIB, 256 * K)
    assert {"kv", "draft", "fits", "total_bytes", "parts", "step_ms", "round_ms"} <= set(read["rows"][0])
    assert read["pick"]["kv"] == "tq4_0/tq4_0" and read["pick"] in read["rows"]
    assert read["why"] == made.why and read["measured"] is False
    for row in read["rows"]:
        assert row["total_bytes"] == sum(row["parts"].values())
        assert row["fits"] == (row["total_bytes"] <= read["usable_bytes"])
        assert 0 < row["step_ms"] < row["round_ms"]
    assert [lever["pulled"] for lever in read["levers"]] == [True, True, False]


def test_plain_decoding_in_words() -> None:
    lines = shown(120, drafts=(None,))
    assert any("with no draft" in line and "plain decoding" in line for line in lines)
    assert not any("on code" in line for line in lines)


@pytest.mark.parametrize(
    ("tokens", "name"),
    [(131072, "128K"), (4096, "4K"), (75584, "73K"), (1 << 24, "16.0M"), (5000, "5,000"), (100, "100")],
)
def test_names_of_sizes(tokens: int, name: str) -> None:
    assert report.size_name(tokens) == name
