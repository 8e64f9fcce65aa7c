"""Pieces of Python source are whole, and what is said about them is true."""

from __future__ import annotations

import ast
from pathlib import Path

from draftwood.training.prompts.python_source import LINES, Stock, gather

SOURCE = '''\
"""A module about tea. It has enough words in its docstring to count as a passage of prose, because the gatherer only
takes paragraphs of thirty words and more that end as a sentence does, with hardly a sign of code in them.
"""

import functools


class Pot:
    """Holds tea."""

    @functools.cache
    def pour(self, cups):
        """Fill some cups.

        A cup holds a fifth of a litre.
        """
        left = self.left - cups
        if left < 0:
            raise ValueError(cups)
        return left


def tiny():
    return 1


def bare(first, second):
    total = first
    for _ in range(second):
        total += 1
    return total
'''


def written(folder: Path, text: str) -> Stock:
    path = folder / "tea.py"
    path.write_text(text, encoding="utf-8")
    return gather(1, [("tea.py", path)])


def test_pieces_of_a_file(tmp_path: Path) -> None:
    pieces = {piece.name: piece for piece in written(tmp_path, SOURCE).pieces}
    assert set(pieces) == {"Pot", "pour", "bare"}
    pour = pieces["pour"]
    assert pour.text.startswith("@functools.cache\ndef pour(self, cups):\n")
    assert pour.text[: pour.body].endswith('litre.\n    """\n')
    assert pour.text[pour.body :].startswith("    left = ")
    assert pour.without_docstring.startswith("@functools.cache\ndef pour(self, cups):\n    left = ")
    assert pieces["Pot"].is_class and not pour.is_class
    assert pieces["bare"].text[: pieces["bare"].body] == "def bare(first, second):\n"
    assert pieces["bare"].without_docstring == pieces["bare"].text


def test_prose_of_a_file(tmp_path: Path) -> None:
    passages = [passage.text for passage in written(tmp_path, SOURCE).passages if passage.file == "tea.py"]
    assert len(passages) == 1
    assert passages[0].startswith("A module about tea. It has") and "\n" not in passages[0]


def test_what_cannot_be_used_is_left_out(tmp_path: Path) -> None:
    assert not written(tmp_path, "def broken(:\n").pieces
    assert not written(tmp_path, SOURCE.replace("total", "tötal")).excerpts
    names = {piece.name for piece in written(tmp_path, SOURCE.replace("total += 1", "print('<|im_end|>')")).pieces}
    assert "bare" not in names
    assert not gather(1, [("gone.py", tmp_path / "gone.py")]).pieces


def test_real_pieces_can_be_parsed(stock: Stock) -> None:
    assert len(stock.pieces) > 40 and len(stock.excerpts) > 15 and len(stock.passages) > 150
    for piece in stock.pieces:
        assert LINES[0] <= piece.text.count("\n") <= LINES[1]
        assert ast.parse(piece.text).body[0].name == piece.name  # type: ignore[attr-defined]
        bare = ast.parse(piece.without_docstring).body[0]
        assert ast.get_docstring(bare) is None  # type: ignore[arg-type]
        assert bool(piece.docstring) == (piece.without_docstring != piece.text)


def test_the_order_is_the_seeds(stock: Stock, tmp_path: Path) -> None:
    path = tmp_path / "tea.py"
    path.write_text(SOURCE, encoding="utf-8")
    files = [("tea.py", path)]
    assert gather(3, files) == gather(3, files)
    assert gather(3, files).passages != gather(4, files).passages
