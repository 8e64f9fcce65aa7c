"""The text that KV types are measured on is the pinned one, and its windows open as a prompt does."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftwood.bench.prompts import running_text
from draftwood.bench.prompts.running_text import DIGEST, text_sha256, windows
from draftwood.engine.fetch import cached
from draftwood.errors import FormatError, UsageError
from draftwood.formats.gguf import GGUFFile
from draftwood.text.tokenizer import Tokenizer


class Letters:
    """A token a letter; 1 opens a prompt."""

    adds_bos = False

    def encode(self, text: str, special: bool, add_bos: bool = False) -> list[int]:
        return [1] * add_bos + [ord(letter) for letter in text]


def test_the_text(demo_model: Path) -> None:
    if cached("humaneval") is None:
        pytest.skip("no HumanEval prompts: run `make setup` (or `draftwood pull humaneval`)")
    text = running_text.running_text()
    assert text_sha256(text) == DIGEST
    tokenizer = Tokenizer.from_metadata(GGUFFile.open(demo_model).metadata)
    pieces = windows(tokenizer, text, 20_000, 2048)
    assert [len(piece) for piece in pieces] == [2048] * 9 + [1568]
    assert tokenizer.decode([token for piece in pieces for token in piece])[:60] == text[:60]


def test_another_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_text, "resolve", lambda name: Path(name))
    monkeypatch.setattr(running_text, "all_texts", lambda path: ["def f():\n    return 1\n"])
    with pytest.raises(FormatError, match="draftwood pull humaneval"):
        running_text.running_text()


def test_windows() -> None:
    letters = Letters()
    assert windows(letters, "abcdefgh", 7, 3) == [[97, 98, 99], [100, 101, 102], [103]]  # type: ignore[arg-type]
    assert windows(letters, "abcdef", 6, 3) == [[97, 98, 99], [100, 101, 102]]  # type: ignore[arg-type]
    letters.adds_bos = True
    assert windows(letters, "abcdef", 5, 3) == [[1, 97, 98], [1, 99]]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="gives 9"):
        windows(letters, "abcdef", 10, 3)  # type: ignore[arg-type]
