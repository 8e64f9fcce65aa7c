"""Progress: nothing for what is quick, nothing into files, a bar for what is slow."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from draftwood.cli import terminal

ROOT = Path(__file__).resolve().parents[2]


def screen(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> io.StringIO:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, force_interactive=is_terminal, width=80)
    monkeypatch.setattr(terminal, "notes", lambda: console)
    return file


def test_a_quick_prompt_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    file = screen(monkeypatch, True)
    with terminal.reading(100) as advance:
        advance(50)
        advance(100)
    assert file.getvalue() == ""


def test_a_slow_prompt_shows_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    file = screen(monkeypatch, True)
    monkeypatch.setattr(terminal, "_PATIENCE", -1.0)
    with terminal.reading(100) as advance:
        advance(50)
        assert "reading the prompt" in file.getvalue()
        advance(100)
        cleared = len(file.getvalue())
    assert len(file.getvalue()) == cleared, "the bar was still there when the answer began"


def test_files_get_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    file = screen(monkeypatch, False)
    monkeypatch.setattr(terminal, "_PATIENCE", -1.0)
    with terminal.reading(100) as advance:
        advance(50)
    with terminal.steps(3) as begin:
        begin("one")
    assert file.getvalue() == ""


@pytest.mark.parametrize("width", [40, 60, 80])
def test_help_names_every_option_in_full(width: int) -> None:
    environment = {**os.environ, "COLUMNS": str(width), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "draftwood", "run", "--help"]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    for option in ("--prompt-ids", "--draft-causal", "--cache-type-k", "--max-ctx", "<auto|float32|bfloat16>"):
        assert option in shown, option
    assert "\x1b" not in shown
