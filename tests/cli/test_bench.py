"""`draftwood bench he`: the tables, the last line, and the red gate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from draftwood.bench.prompts import running_text
from draftwood.bench.suites import kv as kv_suite
from draftwood.cli.main import main
from tests.cli.fakes import Behaviour

pytestmark = pytest.mark.usefixtures("cached_registry")


def last_line(out: str) -> dict[str, Any]:
    lines = out.splitlines()
    assert out.endswith("\n")
    parsed: dict[str, Any] = json.loads(lines[-1])
    return parsed


def test_json_line_has_the_agreed_shape(target: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--n-gen", "20", "--compare", "ar,chain,tree", "--ddtree-budget", "15"]
    assert main(["bench", "he", "--target", target, *flags]) == 0
    out = capsys.readouterr().out
    line = last_line(out)
    assert list(line) == [
        *("bench", "target", "draft", "device", "dtype", "commit", "prompts", "prompts_sha256", "n_gen", "methods")
    ]
    assert (line["bench"], line["target"], line["draft"], line["n_gen"]) == ("he", "model.gguf", "lookup", 20)
    assert [row["method"] for row in line["methods"]] == ["ar", "chain", "tree"]
    assert "budget" not in line["methods"][0] and line["methods"][2]["budget"] == 15
    assert line["methods"][0]["acceptance_length"] == 1.0
    prompt = line["methods"][2]["prompts"][0]
    assert list(prompt) == [
        *("name", "rounds", "acceptance_length", "accept_percent", "prefill_tokens_per_second"),
        *("decode_tokens_per_second", "degenerate"),
    ]
    assert behaviour.loads[0]["draft"] == "lookup"
    assert "identical tokens in all 6 runs" in out
    assert "1.00x" in out


def test_the_demo_model_gets_its_own_draft(shipped_draft: Path, behaviour: Behaviour) -> None:
    assert main(["bench", "he", "--n-gen", "5"]) == 0
    assert main(["bench", "he", "--n-gen", "5", "--draft", "lookup"]) == 0
    assert main(["bench", "he", "--n-gen", "5", "--draft", "demo"]) == 0
    assert [load["draft"] for load in behaviour.loads] == [str(shipped_draft), "lookup", str(shipped_draft)]


@pytest.mark.parametrize(
    ("flags", "method", "budget"),
    [
        ([], "chain", None),
        (["--ddtree-budget", "22"], "tree", 22),
        (["--method", "ar"], "ar", None),
        (["--method", "chain", "--ddtree-budget", "9"], "chain", 9),
    ],
)
def test_which_method_runs(
    flags: list[str], method: str, budget: int | None, target: str, behaviour: Behaviour
) -> None:
    assert main(["bench", "he", "--target", target, "--n-gen", "4", *flags]) == 0
    assert {request["method"] for request in behaviour.requests} == {method}
    assert {request["budget"] for request in behaviour.requests} == {budget}


def test_tree_temperature_reaches_the_engine(target: str, behaviour: Behaviour) -> None:
    assert main(["bench", "he", "--target", target, "--ddtree-budget", "9", "--ddtree-temp", "0.5"]) == 0
    assert behaviour.requests[-1]["draft_temperature"] == 0.5


def test_different_tokens_show_no_speed(target: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour.wrong = ("tree",)
    assert main(["bench", "he", "--target", target, "--compare", "chain,ar,tree"]) == 1
    captured = capsys.readouterr()
    assert "first, tree: token 0 is" in captured.out
    assert "tok/s" not in captured.out and "{" not in captured.out
    assert "draftwood: error: the methods' tokens differ in 2 runs" in captured.err


def test_degenerate_answers_are_flagged(target: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour.repetitive = True
    assert main(["bench", "he", "--target", target]) == 0
    out = capsys.readouterr().out
    assert "first*" in out and "degenerates" in out
    assert all(prompt["degenerate"] for prompt in last_line(out)["methods"][0]["prompts"])


def test_passes(vendored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real engine: a row of the table and of the JSON line for every form, a column for every count."""
    model = str(vendored / "models" / "l-b.Q4_1.gguf")
    flags = ["--rows", "1, 4", "--forms", "float32,bfloat16", "--repeats", "2"]
    assert main(["bench", "passes", "--target", model, *flags]) == 0
    out = capsys.readouterr().out
    line = last_line(out)
    assert (line["bench"], line["target"], line["repeats"]) == ("passes", "l-b.Q4_1.gguf", 2)
    assert line["device"] and line["commit"]
    assert [form["dtype"] for form in line["forms"]] == ["float32", "bfloat16"]
    assert all(form[part].keys() == {"1", "4"} for form in line["forms"] for part in ("blocks_ms", "head_ms"))
    assert line["commit"] in out.splitlines()[1]
    table = out.split("weight form ")[1].splitlines()
    assert table[0].split() == ["1", "row", "4", "rows"]
    assert table[2].startswith("f32 100 % (float32)") and table[3].startswith("bf16 100 % (bfloat16)")


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--rows", "0"], "names '0', but a pass has 1 to 64 rows"),
        (["--rows", "4,65"], "names '65'"),
        (["--rows", "4,"], "names ''"),
        (["--rows", "\u00b2"], "1 to 64"),
        (["--rows", "4,4"], "once"),
        (["--forms", "int3"], "auto, float32, bfloat16"),
        (["--repeats", "0"], "--repeats is 0"),
    ],
)
def test_bad_flags_of_passes(
    flags: list[str], fragment: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "passes", *flags]) == 2
    assert fragment in capsys.readouterr().err
    assert not behaviour.loads


def test_bench_alone_shows_its_suites(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    captured = capsys.readouterr()
    assert "passes" in captured.out and captured.err == ""


def test_repeats_show_their_spread(target: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "he", "--target", target, "--repeats", "3"]) == 0
    assert "median of 3 runs" in capsys.readouterr().out
    assert len(behaviour.requests) == 1 + 2 * 3


@pytest.fixture
def short_text(vendored: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A short text in the place of the long one; returns the file of a small real model."""
    monkeypatch.setattr(running_text, "running_text", lambda: "def add(a, b):\n    return a + b\n" * 20)
    return str(vendored / "models" / "l-b.Q4_1.gguf")


def test_kv(short_text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real engine: a table, the last line, and the same in three files."""
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install draftwood[plots]")
    out = tmp_path / "made" / "here"
    flags = ["--tokens", "120", "--window", "64", "--n-gen", "8", "--kv", "q4_0, q8_0/tq3", "--out", str(out)]
    assert main(["bench", "kv", "--target", short_text, *flags]) == 0
    shown = capsys.readouterr().out
    line = last_line(shown)
    assert (line["bench"], line["target"], line["draft"], line["dtype"]) == ("kv", "l-b.Q4_1.gguf", "lookup", "float32")
    assert (line["tokens"], line["window"], line["complete"], line["n_gen"]) == (120, 64, True, 8)
    names = [(row["kv"], row["rotated"]) for row in line["rows"]]
    assert names == [("f16/f16", True), ("q4_0/q4_0", True), ("q8_0/tq3_0", True), ("q4_0/q4_0", False)]
    assert line["rows"][0]["kl_mean"] == 0 < line["rows"][2]["kl_mean"]
    assert [row["acceptance_length"] is None for row in line["rows"]] == [False, False, False, True]
    assert line["commit"] in shown and "q8_0/tq3_0 " in shown
    assert json.loads((out / "kv.json").read_text()) == line
    assert "| q4_0 unrotated |" in (out / "kv.md").read_text()
    assert (out / "kv.png").read_bytes().startswith(b"\x89PNG")


def test_kv_can_leave_parts_out(short_text: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--tokens", "70", "--kv", "q8_0", "--skip-acceptance", "--skip-unrotated"]
    assert main(["bench", "kv", "--target", short_text, *flags]) == 0
    line = last_line(capsys.readouterr().out)
    assert line["draft"] is None and line["n_gen"] == 0
    assert [(row["rotated"], row["acceptance_length"]) for row in line["rows"]] == [(True, None)] * 2


@pytest.mark.parametrize(("after", "tokens"), [(7, 64), (12, 120)])
def test_an_interrupted_kv_shows_what_it_has(
    after: int, tokens: int, short_text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a window, and while the first drafts are made."""
    read, draft, calls = kv_suite.Fidelity.read, kv_suite.Fidelity.draft, []

    def counted(begin: Any) -> Any:
        def stop(label: str) -> None:
            calls.append(label)
            if len(calls) > after:
                raise KeyboardInterrupt
            begin(label)

        return stop

    monkeypatch.setattr(kv_suite.Fidelity, "read", lambda self, texts, begin: read(self, texts, counted(begin)))
    monkeypatch.setattr(kv_suite.Fidelity, "draft", lambda self, *a: draft(self, *a[:-1], counted(a[-1])))
    assert main(["bench", "kv", "--target", short_text, "--tokens", "120", "--window", "64", "--kv", "q8_0"]) == 130
    shown = capsys.readouterr().out
    line = last_line(shown)
    assert (line["tokens"], line["complete"]) == (tokens, False) and "INTERRUPTED" in shown
    assert [row["acceptance_length"] for row in line["rows"]] == [None] * 3


def test_nothing_measured_shows_nothing(
    short_text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kv_suite.Fidelity, "read", stop)
    assert main(["bench", "kv", "--target", short_text, "--tokens", "70"]) == 130
    assert capsys.readouterr().out == ""


def test_kv_shows_no_figure_where_drafts_change_tokens(
    short_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kv_suite.Fidelity, "differences", ["q8_0: first, chain: token 0 is 1 instead of 2"])
    flags = ["--tokens", "64", "--kv", "q8_0", "--n-gen", "2", "--out", str(tmp_path / "out")]
    assert main(["bench", "kv", "--target", short_text, *flags]) == 1
    captured = capsys.readouterr()
    assert captured.out == "q8_0: first, chain: token 0 is 1 instead of 2\n" and "promise" in captured.err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--kv", "q9"], "unknown KV type 'q9'"),
        (["--kv", "q8_0,q8_0"], "once"),
        (["--tokens", "0"], "--tokens is 0"),
        (["--tokens", "100000"], "the text gives"),
        (["--window", "1"], "at least 16"),
    ],
)
def test_bad_flags_of_kv(flags: list[str], fragment: str, short_text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kv", "--target", short_text, "--skip-acceptance", *flags]) == 2
    assert fragment in capsys.readouterr().err


def test_a_missing_matplotlib_is_said_before_the_model_is_loaded(
    target: str,
    behaviour: Behaviour,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["bench", "kv", "--target", target, "--out", str(tmp_path / "out")]) == 2
    assert "draftwood[plots]" in capsys.readouterr().err
    assert not behaviour.loads and not (tmp_path / "out").exists()
