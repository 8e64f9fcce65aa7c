"""The picture of memory against context."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from draftwood.errors import UsageError
from draftwood.planner.picture import draw
from draftwood.planner.search import answer, sweep
from tests.planner.cases import K, question


def test_a_png_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install draftwood[plots]")
    asked = question(64 * K)
    draw(asked, answer(asked), tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    asked = question(64 * K)
    with pytest.raises(UsageError, match=r"draftwood\[plots\]"):
        draw(asked, answer(asked), tmp_path / "plan.png")
    assert not list(tmp_path.iterdir())


def test_a_line_is_the_least_that_a_type_takes() -> None:
    asked = question(256 * K)
    made = answer(asked)
    for row in made.rows:
        (at,) = sweep(asked, row.kv, row.draft, [256 * K])
        assert at <= row.total
        assert row.fits == (at <= made.limit)
        first, second = sweep(asked, row.kv, row.draft, [8 * K, 16 * K])
        assert first < second
