"""The command line on a fake engine, and a file that stands for a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftwood.bench.prompts import humaneval
from draftwood.bench.prompts.humaneval import Prompt
from tests.cli.fakes import Behaviour, FakeEngine, fake_module


@pytest.fixture
def behaviour(monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    """Put the fake engine in the place of the real one; what the test sets here is what it does."""
    monkeypatch.setitem(sys.modules, "draftwood.engine.engine", fake_module())
    FakeEngine.behaviour = Behaviour()
    yield FakeEngine.behaviour
    FakeEngine.behaviour = Behaviour()


@pytest.fixture
def target(tmp_path: Path) -> str:
    """A file that exists; the fake engine never opens it."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


@pytest.fixture
def shipped_draft(tmp_path: Path, cached_registry: None) -> Path:
    """The draft of the demo model is in the package."""
    from draftwood.engine import fetch

    path = fetch.registry(fetch.DRAFTS)["demo"].place
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def cached_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of the registry is here already, no draft is, and HumanEval has two prompts."""
    from draftwood.engine import fetch

    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("DRAFTWOOD_CACHE", str(cache))
    for entry in fetch.registry().values():
        with (cache / entry.file).open("wb") as file:
            file.truncate(entry.size)
    monkeypatch.setattr(fetch, "drafts_dir", lambda: tmp_path / "drafts")
    prompts = [Prompt("first", "def first("), Prompt("second", "def second(a,")]
    monkeypatch.setattr(humaneval, "load_prompts", lambda path: prompts)
