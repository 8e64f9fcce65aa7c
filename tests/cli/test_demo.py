"""`draftwood demo` from its first sentence to what to do next."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftwood.cli.main import main
from tests.cli.fakes import Behaviour

pytestmark = pytest.mark.usefixtures("cached_registry")


def test_demo(behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-n", "20"]) == 0
    out = capsys.readouterr().out
    assert out.count("identical tokens with ar, chain, tree, auto: yes") == 2
    assert "def read_settings" in out and "draftwood chat" in out
    assert behaviour.loads[0]["draft"] == "lookup" and "looked up" in out


def test_demo_uses_the_draft_that_is_shipped(
    shipped_draft: Path, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "-n", "20"]) == 0
    assert "a draft, which was trained" in capsys.readouterr().out
    assert main(["demo", "-n", "20", "--draft", "lookup"]) == 0
    assert "The guesses are looked up" in capsys.readouterr().out
    assert [load["draft"] for load in behaviour.loads] == [str(shipped_draft), "lookup"]


def test_demo_never_hides_a_difference(behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour.wrong = ("chain",)
    assert main(["demo", "-n", "20"]) == 1
    captured = capsys.readouterr()
    assert "identical tokens with ar, chain, tree, auto: no" in captured.out
    assert "tok/s" not in captured.out
