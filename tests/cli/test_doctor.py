"""`draftwood doctor`: the machine, and a draft against its target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from draftwood.cli.main import main
from draftwood.decode.drafters.dflash import DFlashDrafter
from draftwood.errors import DraftMismatchError
from draftwood.models.draft_spec import read_spec
from draftwood.models.draft_tensors import open_source
from tests.cli.fakes import Behaviour


@pytest.mark.usefixtures("cached_registry")
def test_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    names = [line.split()[0] for line in out.splitlines()]
    assert {"draftwood", "python", "torch", "numpy", "cpu", "memory", "device", "demo", "humaneval"} <= set(names)
    assert out.splitlines()[-1].startswith(("nothing is missing", "missing: "))


def test_a_pair_that_fits(target: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--target", target, "--draft", target]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["architecture", "fake"] in rows and ["mask", "token", "7"] in rows
    assert out.endswith("the draft fits the target\n")


def test_facts_of_a_dflash_draft(vendored: Path) -> None:
    spec = read_spec(open_source(vendored / "draft" / "d1-a.Q8_0.dflash.gguf"))
    spec = replace(spec, windows=(32, 32, None), causal=(True, True, False), block_sizes=(8,), notes=("a decision",))
    facts = DFlashDrafter(SimpleNamespace(spec=spec), None, 16).facts()  # type: ignore[arg-type]
    assert facts == {
        "draft format": "dflash",
        "draft layers": "3, hidden size 128",
        "reads target layers": "1, 3, 5 (counted from 0)",
        "block": "16 rows; the file also has 8",
        "mask token": "510",
        "proposes from": "512 of 512 tokens",
        "sees back": "32 tokens (layers 0-1), all (layer 2)",
        "causal in the block": "yes (layers 0-1), no (layer 2)",
        "note 1": "a decision",
    }


def test_a_pair_that_does_not(target: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour.failure = DraftMismatchError("the draft is 512 wide and the target 576; give the target's own draft.")
    assert main(["doctor", "--target", target, "--draft", target]) == 1
    assert "512 wide" in capsys.readouterr().err
