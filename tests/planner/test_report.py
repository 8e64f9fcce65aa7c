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
    header = next(line for line in lines if "KV type" in line)
    columns = ["ms", "tok/s", "up", "to"]
    assert header.split() == ["KV", "type", "KV", "q8_0", "draft", *columns, "q4_k_m", "draft", *columns]
    (picked,) = [line for line in lines if line.startswith("> ")]
    assert picked.split()[:3] == [">", "tq3_0", "3.07"]
    assert "no  room" in next(line for line in lines if line.startswith("  f16"))


@pytest.mark.parametrize(("width", "context", "most"), [(120, 32 * K, 20), (80, 32 * K, 21), (80, 256 * K, 22)])
def test_it_fits_a_screen(width: int, context: int, most: int) -> None:
    assert len(shown(width, context)) <= most


def test_a_narrow_terminal_gets_the_picks_draft_line_by_line() -> None:
    lines = shown(40)
    assert any(line.startswith("> tq3_0  22.66 GiB") for line in lines)
    assert not any("q4_k_m" in line and "GiB" in line for line in lines)


def test_what_is_said_is_honest() -> None:
    ours, reference = "\n".join(shown(200)), "\n".join(shown(200, sizes="reference"))
    assert "predicted: GiB, ms a round, longest context; not measured on this card" in ours
    assert "predicted: GiB, ms a round, longest context; the reference system's, not ours" in reference
    assert "flags  -ctk tq3_0 -ctv tq3_0 -ctkd q8_0 -ctvd q8_0 --max-ctx 262144" in ours
    assert "flags" not in reference and "levers" not in reference


def test_levers_say_what_they_are_and_whether_they_are_pulled() -> None:
    text = " ".join(" ".join(shown(200)).split())
    assert (
        "levers pulled: t table on host .67 (microseconds a round), w compact weights 1.46 "
        "(products take a fifth longer); left: d 4-bit draft K/V .28" in text
    )
    text = " ".join(" ".join(shown(200, 32 * K)).split())
    assert "levers left: t table on host .67, w compact weights 1.46, d 4-bit draft K/V .04" in text


def test_every_part_of_the_pick_is_named() -> None:
    line = next(line for line in shown(200, 32 * K) if line.startswith("GiB"))
    sizes = [float(word) for word in line.split() if word[0].isdigit() or word[0] == "."]
    assert len(sizes) == len(planned(32 * K).pick.parts)
    assert sum(sizes) == pytest.approx(planned(32 * K).pick.total / GIB, abs=0.05)
    for name in ("weights", "KV", "draft K/V", "state", "tape", "workspace", "features", "driver", "graphs"):
        assert f" {name} " in line


def test_types_of_equal_bits_are_shown_once() -> None:
    names = [line.split()[0] for line in shown(79, 4 * K) if line.startswith("  ") and line[2:3].islower()]
    assert "f16" in names and not {"bf16", "f32"} & set(names)


def test_json_is_the_agreed_one() -> None:
    made = planned(256 * K)
    read = json.loads(report.json_line(made))
    assert (read["model"], read["vram_bytes"], read["context"]) == ("qwen3.6-27b", 24 * GIB, 256 * K)
    assert {"kv", "draft", "fits", "total_bytes", "parts", "step_ms", "round_ms"} <= set(read["rows"][0])
    assert read["pick"]["kv"] == "tq3_0/tq3_0" and read["pick"] in read["rows"]
    assert read["why"] == made.why and read["measured"] is False
    for row in read["rows"]:
        assert row["total_bytes"] == sum(row["parts"].values())
        assert row["fits"] == (row["total_bytes"] <= read["usable_bytes"])
        assert 0 < row["step_ms"] < row["round_ms"]
    assert [lever["pulled"] for lever in read["levers"]] == [True, True, False]


def test_plain_decoding_in_words() -> None:
    lines = shown(120, drafts=(None,))
    assert any("no draft, plain decoding" in line for line in lines)
    assert not any("on code" in line for line in lines)


@pytest.mark.parametrize(
    ("tokens", "name"),
    [(131072, "128K"), (4096, "4K"), (75584, "73K"), (1 << 24, "16.0M"), (5000, "5,000"), (100, "100")],
)
def test_names_of_sizes(tokens: int, name: str) -> None:
    assert report.size_name(tokens) == name
