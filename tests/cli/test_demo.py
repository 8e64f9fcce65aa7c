"""`draftwood demo` from its first sentence to what to do next."""

from __future__ import annotations

import pytest

from draftwood.cli.main import main
from tests.cli.fakes import Behaviour

pytestmark = pytest.mark.usefixtures("cached_registry")


def test_demo(behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-n", "20"]) == 0
    out = capsys.readouterr().out
    assert out.count("identical tokens with ar, chain, tree: yes") == 2
    assert "def read_settings" in out and "draftwood chat" in out
    assert behaviour.loads[0]["draft"] == "lookup"


def test_demo_never_hides_a_difference(behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour.wrong = ("chain",)
    assert main(["demo", "-n", "20"]) == 1
    captured = capsys.readouterr()
    assert "identical tokens with ar, chain, tree: no" in captured.out
    assert "tok/s" not in captured.out
