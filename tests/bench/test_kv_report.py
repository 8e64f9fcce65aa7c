"""The table, the Markdown and the picture of `bench kv`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from draftwood.bench import kv_picture, kv_report
from draftwood.bench.suites.kv import Case, Row, cases
from draftwood.cache.registry import kv_pair
from draftwood.errors import UsageError
from draftwood.models.spec import ModelSpec

SPEC = ModelSpec("llama", 3, 8, 8, 9, 3, 3, 64, 1e-5, 64, 1e4, "adjacent", 99, attention=(True, False, True))
FACTS = {"target": "m.gguf", "architecture": "llama", "draft": "d", "device": "cpu", "dtype": "float32", "threads": 2}
Q8 = Row(Case(kv_pair("q8_0")), 8.5, 12240, 0.00509, 0.0053, 0.0001219, 0.0145, 0.99609, 3.591)
PLAIN = Row(Case(kv_pair("q8_0"), rotated=False), 8.5, 12240, 0.0082, 0.0057, 5.4e-4, 0.01, 0.9902)


def given(complete: bool = True, n_gen: int = 64) -> kv_report.Conditions:
    return kv_report.Conditions(FACTS, SPEC, "abc", "a text", "0" * 64, 20000, 2048, complete, n_gen, "1" * 64)


def test_table() -> None:
    lines = kv_report.table([Q8, PLAIN])
    assert lines[3:] == [
        "q8_0               8.5   12240   0.0051   0.0053  0.00012   0.015   99.61  3.59",
        "q8_0 unrotated     8.5   12240   0.0082   0.0057  0.00054    0.01   99.02",
    ]
    assert max(map(len, lines)) <= 79


def test_conditions_say_what_was_done() -> None:
    text = "\n".join(kv_report.conditions(given()))
    assert "20,000 tokens in windows of 2,048" in text and "2 of 3 layers attend" in text and "at most 64" in text
    assert "INTERRUPTED" not in text
    text = "\n".join(kv_report.conditions(given(complete=False, n_gen=0)))
    assert "INTERRUPTED" in text and "AL" not in text


def test_markdown() -> None:
    lines = kv_report.markdown(given(), [Q8, PLAIN]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {10}
    assert table[2] == "| q8_0 | 8.5 | 12240 | 0.0051 | 0.0053 | 0.00012 | 0.015 | 99.61 | 3.59 |"
    assert any(line.startswith("- KL: how far") for line in lines)


def test_json() -> None:
    read = json.loads(json.dumps(kv_report.as_json(given(), [Q8, PLAIN])))
    assert (read["bench"], read["layers"], read["head_dim"], read["complete"]) == ("kv", 2, 64, True)
    assert read["rows"][0] == {
        "kv": "q8_0/q8_0",
        "rotated": True,
        "bits": 8.5,
        "bytes_per_token": 12240,
        "key_error": 0.00509,
        "value_error": 0.0053,
        "kl_mean": 0.0001219,
        "kl_p999": 0.0145,
        "same_top": 0.99609,
        "acceptance_length": 3.591,
    }
    assert read["rows"][1]["acceptance_length"] is None and not read["rows"][1]["rotated"]
    assert kv_report.as_json(given(n_gen=0), [Q8])["draft"] is None


def test_picture(tmp_path: Path) -> None:
    """Crowded points keep names apart; a type without divergence is left out."""
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install draftwood[plots]")
    rows = [Row(case, case.bits(64), 1, 0, 0, 0.01 * (i > 0), 0.1, 1) for i, case in enumerate(cases(None, 64))]
    kv_picture.draw(rows, "many at one height", tmp_path / "kv.png")
    kv_picture.draw(rows[:1], "the reference alone", tmp_path / "one.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"draftwood\[plots\]"):
        kv_picture.blank()
