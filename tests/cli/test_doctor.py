"""`draftwood doctor`: the machine, and a draft against its target."""

from __future__ import annotations

import pytest

from draftwood.cli.main import main
from draftwood.errors import DraftMismatchError
from tests.cli.fakes import Behaviour


@pytest.mark.usefixtures("cached_registry")
def test_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    names = [line.split()[0] for line in out.splitlines()]
    assert {"draftwood", "python", "torch", "numpy", "cpu", "memory", "device", "demo", "humaneval"} <= set(names)
    assert "missing" in out


def test_a_pair_that_fits(target: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--target", target, "--draft", target]) == 0
    out = capsys.readouterr().out
    assert "architecture     fake" in out and "the draft fits the target" in out


def test_a_pair_that_does_not(target: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour.failure = DraftMismatchError("the draft is 512 wide and the target 576; give the target's own draft.")
    assert main(["doctor", "--target", target, "--draft", target]) == 1
    assert "512 wide" in capsys.readouterr().err
