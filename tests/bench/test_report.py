"""The printed layout of SPEC-dflash 7.1, and the numbers in it."""

from __future__ import annotations

import io
import json
import subprocess

import pytest
from rich.console import Console

from draftwood import __version__
from draftwood.bench import report
from draftwood.bench.measure import sample
from draftwood.bench.suites.he import MethodRun, PromptRun, SuiteResult


def prompt(name: str, speed: float, length: float = 4.0, degenerate: bool = False, spread: float = 0.0) -> PromptRun:
    decode = sample([speed - spread, speed, speed + spread])
    return PromptRun(name, (1, 2), 5, length, 25.0, sample([300.0]), decode, degenerate)


def test_method_table() -> None:
    run = MethodRun("tree", 22, (prompt("below_zero", 40.0), prompt("sum_product", 60.0, length=6.0)))
    assert report.method_table(run) == [
        "prompt                         steps      AL    pct%   prefill    decode",
        "-" * 72,
        "below_zero                         5    4.00    25.0     300.0     40.00",
        "sum_product                        5    6.00    25.0     300.0     60.00",
        "-" * 72,
        "MEAN                                    5.00    25.0     300.0     50.00",
        "",
        "commit/step range: 4.00 - 6.00",
        "tok/s range: 40.00 - 60.00",
    ]


def test_flagged_prompts_are_shown_and_left_out_of_a_second_mean() -> None:
    run = MethodRun("ar", 0, (prompt("good", 40.0), prompt("bad", 90.0, length=9.0, degenerate=True)))
    lines = report.method_table(run)
    assert any(line.startswith("bad* ") for line in lines)
    assert lines[-1] == "MEAN of the 1 others: AL 4.00, 40.00 tok/s"


def test_spread_is_shown() -> None:
    run = MethodRun("ar", 0, (prompt("a", 40.0, spread=2.0), prompt("b", 50.0)))
    assert "largest spread of a prompt's runs: 10.0 %" in report.method_table(run)


def test_a_narrow_terminal_gets_lines_instead_of_a_table() -> None:
    runs = [
        MethodRun("ar", 0, (prompt("mean_absolute_deviation", 10.0), prompt("b", 1130.0, degenerate=True))),
        MethodRun("chain", 15, (prompt("mean_absolute_deviation", 30.0), prompt("b", 2260.0, degenerate=True))),
    ]
    lines = report.comparison(runs, Console(file=io.StringIO(), width=40))
    assert isinstance(lines, str)
    assert lines.splitlines()[:-1] == [
        "mean_absolute_deviation",
        "  ar          10.0 tok/s",
        "  chain 15    30.0 tok/s AL  4.00 3.00x",
        "b*",
        "  ar        1130.0 tok/s",
        "  chain 15  2260.0 tok/s AL  4.00 2.00x",
        "MEAN",
        "  ar         570.0 tok/s",
        "  chain 15  1145.0 tok/s AL  4.00 2.01x",
    ]
    assert lines.splitlines()[-1].startswith("* the answer degenerates")
    assert not isinstance(report.comparison(runs, Console(file=io.StringIO(), width=120)), str)


def test_an_assumed_acceptance_is_called_so_everywhere() -> None:
    runs = [MethodRun("ar", 0, (prompt("a", 10.0),)), MethodRun("tree", 8, (prompt("a", 40.0),), assumed=4.93)]
    said = "acceptance assumed, not measured"
    assert f"{said}: rounds were told to decide 4.93 tokens on average" in report.method_table(runs[1])
    assert not any(said in line for line in report.method_table(runs[0]))
    assert said in report.comparison_lines(runs)[-1] and said in str(report.comparison_table(runs).caption)
    assert next(line for line in report.legend(runs) if said in line).startswith("tree 8 ")
    assert report.agreement(runs, 6) == (
        f"identical tokens in all runs but those of tree 8, which agree among themselves; {said}"
    )
    assert report.agreement(runs[:1], 6) == "identical tokens in all 6 runs"
    facts = dict.fromkeys(("target", "draft", "device", "dtype"), "x")
    line = json.loads(report.json_line(facts, "c", "humaneval", "0" * 64, 8, SuiteResult(tuple(runs), ())))
    assert "acceptance" not in line["methods"][0]
    assert (line["methods"][1]["acceptance"], line["methods"][1]["assumed_acceptance_length"]) == (said, 4.93)


def test_legend_names_every_method() -> None:
    runs = [MethodRun(name, budget, ()) for name, budget in (("ar", 0), ("chain", 15), ("tree", 22))]
    lines = report.legend([*runs, MethodRun("auto", 0, (), "chain to depth 3, for these reasons")])
    assert [line.split("  ")[0] for line in lines] == ["ar", "chain 15", "tree 22", "auto", "AL", "tok/s"]
    assert "up to 22 guesses" in lines[2] and "chain to depth 3, for these reasons" in lines[3]


def rendered(runs: list[MethodRun]) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(report.comparison_table(runs))
    return out.getvalue()


def test_comparison_with_speed_ups() -> None:
    plain = MethodRun("ar", 0, (prompt("a", 10.0), prompt("b", 30.0)))
    tree = MethodRun("tree", 22, (prompt("a", 30.0), prompt("b", 30.0)))
    text = rendered([plain, tree])
    assert "tree 22" in text
    assert "3.00x" in text and "1.00x" in text and "1.50x" in text


def test_comparison_without_plain_decoding_has_no_speed_ups() -> None:
    runs = [MethodRun(name, 8, (prompt("a", 10.0), prompt("b", 30.0))) for name in ("chain", "tree")]
    assert "speed-up" not in rendered(runs)


def test_commit_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*arguments: object, **options: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", no_git)
    assert report.commit() == f"v{__version__}"
