"""`draftwood pull`: lists, prints paths, and mends a damaged file."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftwood.cli.main import main
from draftwood.engine import fetch


@pytest.mark.usefixtures("cached_registry")
def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    (fetch.cache_dir() / fetch.registry()["humaneval"].file).unlink()
    assert main(["pull"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("demo") and lines[0].endswith("(here)")
    assert lines[1].startswith("humaneval") and "to fetch" in lines[1]
    assert lines[2].startswith("demo draft ") and "missing from this installation" in lines[2]


def test_list_names_the_shipped_draft(shipped_draft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull"]) == 0
    assert capsys.readouterr().out.splitlines()[2].endswith("(part of draftwood)")


@pytest.mark.usefixtures("cached_registry")
def test_damaged_file_is_fetched_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fetched: list[str] = []
    path = fetch.cache_dir() / fetch.registry()["humaneval"].file

    def fake_fetch(entry: fetch.Entry) -> object:
        assert not path.exists(), "the damaged file was left in place"
        fetched.append(entry.name)
        return path

    monkeypatch.setattr(fetch, "_fetch_entry", fake_fetch)
    assert main(["pull", "humaneval"]) == 0
    assert fetched == ["humaneval"]
    assert capsys.readouterr().out == f"humaneval: {path}\n"
