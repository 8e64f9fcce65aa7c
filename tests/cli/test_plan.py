"""`draftwood plan`: without torch, and one sentence for what cannot be planned."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from draftwood.cli.main import main
from draftwood.planner import hardware
from tests.conftest import VENDORED

ROOT = Path(__file__).resolve().parents[2]
TINY = str(VENDORED / "models" / "q35-c.Q4_K_M.gguf")
Shown = Callable[..., str]


@pytest.fixture(autouse=True)
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' machine has no card, whatever it has."""
    monkeypatch.setattr(hardware, "find", lambda: None)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """Runs `draftwood plan` and returns its stdout."""

    def run(*arguments: str) -> str:
        assert main(["plan", *arguments]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Shown:
    """Runs a plan that must be refused and returns its sentence."""

    def run(code: int, *arguments: str) -> str:
        assert main(["plan", *arguments]) == code
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("draftwood: error: ") and err.count("\n") == 1 and len(err) < 300
        return err

    return run


def test_it_runs_where_torch_is_missing() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\nfrom draftwood.cli.main import main\n"
        "sys.exit(main(['plan', 'qwen3.6-27b', '--vram', '24GiB', '--context', '256K', '--json']))"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["pick"]["fits"]


def test_the_usual_model_needs_no_argument(shown: Shown) -> None:
    out = shown("--card", "3090")
    assert "Qwen3.6-27B" in out and "32K tokens" in out and "RTX 3090" in out


def test_a_file_is_planned_from_its_header(shown: Shown) -> None:
    read = json.loads(shown(TINY, "--card", "4090", "--json"))
    assert read["model"] == "q35-c.Q4_K_M.gguf"
    assert {row["draft"] for row in read["rows"]} == {"none"}


def test_flags_reach_the_plan(shown: Shown) -> None:
    read = json.loads(
        shown(
            *("qwen3.6-27b", "--card", "1792/209", "--vram", "32GiB", "--context", "64K", "--budget", "22"),
            *("--draft", "Q8_0", "-ctk", "q8", "-ctv", "f16", "-ctvd", "q4_0", "--json"),
        )
    )
    assert (read["vram_bytes"], read["context"], read["card"]) == (32 << 30, 65536, "a card of 1792 GB/s")
    assert [(row["kv"], row["draft"], row["budget"]) for row in read["rows"]] == [("q8_0/f16", "q8_0", 22)]
    assert {row["draft_kv"] for row in read["rows"]} == {"q4_0/q4_0"}
    assert {row["draft"] for row in json.loads(shown("--draft", "none", "--json"))["rows"]} == {"none"}
    assert json.loads(shown("--sizes", "reference", "--json"))["sizes"] == "reference"


def test_a_draft_window_changes_what_its_cache_takes(shown: Shown) -> None:
    def draft_bytes(*flags: str) -> list[int]:
        rows = json.loads(shown("--context", "128K", "--json", *flags))["rows"]
        return [row["parts"]["draft_kv"] for row in rows]

    usual, none, short = draft_bytes(), draft_bytes("--draft-swa", "off"), draft_bytes("--draft-swa", "512")
    assert all(a < b < c for a, b, c in zip(short, usual, none, strict=True))
    assert draft_bytes("--draft-swa", "2048") == usual
    assert none[0] / usual[0] == pytest.approx(5 / (1 + 4 * 2048 / 131072), rel=0.01)
    assert "--draft-swa off --max-ctx" in shown("--draft-swa", "off")
    assert "--draft-swa 512 --max-ctx" in shown("--draft-swa", "512", "--draft", "q8_0")
    assert "--draft-swa" not in shown()


def test_an_assumed_card_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 0
    assert "no card was found" in capsys.readouterr().err
    assert main(["plan", "--vram", "48GiB"]) == 0
    assert "an RTX 3090's speed is assumed" in capsys.readouterr().err


def test_a_card_that_was_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = hardware.Found("NVIDIA GeForce RTX 4090", 24 << 30, 21 << 30, "nvidia-smi")
    monkeypatch.setattr(hardware, "find", lambda: found)
    assert main(["plan", "--json"]) == 0
    out, err = capsys.readouterr()
    read = json.loads(out)
    assert (read["card"], read["usable_bytes"]) == ("RTX 4090", 21 << 30)
    assert "nvidia-smi says: NVIDIA GeForce RTX 4090, 21.00 of 24.00 GiB free" in err
    monkeypatch.setattr(hardware, "find", lambda: hardware.Found("Odd", 96 << 30, 95 << 30, "nvidia-smi"))
    assert main(["plan", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["usable_bytes"] == 93 << 30
    assert "that card is not known" in err


def test_bad_input(refused: Shown, tmp_path: Path) -> None:
    assert "qwen3.6-27b" in refused(2, "gpt-9")
    assert "does not exist" in refused(1, str(tmp_path / "none.gguf"))
    assert "the known ones are q8_0, q4_k_m" in refused(2, "--draft", "q3_k")
    assert "give a file, or none" in refused(2, TINY, "--draft", "q8_0")
    assert "use the draft made for it" in refused(1, "--draft", str(VENDORED / "draft" / "d1-a.Q8_0.dflash.gguf"))
    assert "the known ones are RTX 3090" in refused(2, "--card", "Voodoo 2")
    assert "there is no draft to plan" in refused(2, "--draft", "none", "--draft-swa", "off")
    assert "there is no draft to plan" in refused(2, TINY, "--draft-swa", "512")
    assert "a number of tokens, or off" in refused(2, "--draft-swa", "wide")
    assert "24GiB" in refused(2, "--vram", "lots")
    assert "128K" in refused(2, "--context", "long")
    assert "1 to 63" in refused(2, "--budget", "64")
    assert "q8_0" in refused(2, "-ctk", "q9_9")
    assert "the longest context that does is" in refused(1, "--card", "3090", "--context", "1M")
    assert "does not fit into" in refused(1, "--card", "3090", "--vram", "8GiB")


def test_a_name_that_is_not_fetched_yet(refused: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTWOOD_CACHE", str(tmp_path))
    assert "draftwood pull demo" in refused(2, "demo")
