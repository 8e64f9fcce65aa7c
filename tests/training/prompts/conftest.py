"""A tokeniser with a chat template, and a stock of few files."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from draftwood.formats.gguf import GGUFFile
from draftwood.text.tokenizer import Tokenizer
from draftwood.training.prompts.python_source import Stock, gather

MODULES = ("statistics", "textwrap", "heapq", "json/decoder", "string", "queue", "shlex", "calendar", "fractions")


@pytest.fixture(scope="session")
def tokenizer(vendored: Path) -> Tokenizer:
    """512 entries cut from SmolLM2's, with its chat template."""
    return Tokenizer.from_metadata(GGUFFile.open(vendored / "models" / "l-b.Q4_1.gguf").metadata)


@pytest.fixture(scope="session")
def stock() -> Stock:
    """Pieces of some modules of the standard library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return gather(1, [(f"python/{name}.py", library / f"{name}.py") for name in MODULES])


@pytest.fixture
def small_stock(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every desk reads those modules only; reading all source of a machine takes too long for most tests."""
    monkeypatch.setattr("draftwood.training.prompts.desk.gather", lambda _seed: stock)
