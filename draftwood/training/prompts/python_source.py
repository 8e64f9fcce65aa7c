"""Pieces of real Python source: the standard library of the running interpreter and the packages beside it.

Only what the machine has is used, so another machine gets other pieces for the same seed.
"""

from __future__ import annotations

import ast
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

PIECES_OF_A_FILE: Final = 10
PASSAGES_OF_A_FILE: Final = 6
FILES_OF_A_PACKAGE: Final = 70
LINES: Final = (5, 60)
"""Shortest and longest piece."""

_LEFT_OUT: Final = frozenset(
    {"draftwood", "human_eval", "site-packages", "dist-packages", "test", "tests", "testing", "__pycache__"}
)
"""Folders left out: tests, and whatever a benchmark is made from."""
_LONGEST_FILE: Final = 200_000
_LONGEST_LINE: Final = 120

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Piece:
    """A function or class, dedented to the margin.

    file: where it is from, as `package/path.py`. body: index of the first character behind the signature and the
    docstring. docstring: its text, or "".
    """

    file: str
    name: str
    text: str
    body: int
    docstring: str
    is_class: bool

    @property
    def without_docstring(self) -> str:
        """The text with the docstring taken out; the same text if there is none."""
        if not self.docstring:
            return self.text
        lines = self.text[: self.body].splitlines(keepends=True)
        first = next(
            i for i, line in enumerate(lines) if line.lstrip().lstrip("rRuUbB").startswith(('"""', "'''", '"', "'"))
        )
        return "".join(lines[:first]) + self.text[self.body :]


@dataclass(frozen=True)
class Excerpt:
    """Whole lines of a file, from the start of a statement at the margin."""

    file: str
    text: str


@dataclass(frozen=True)
class Passage:
    """A paragraph of prose. file: where it is from."""

    file: str
    text: str


@dataclass(frozen=True)
class Stock:
    """Everything gathered, in an order that the seed decides."""

    pieces: tuple[Piece, ...]
    excerpts: tuple[Excerpt, ...]
    passages: tuple[Passage, ...]


def gather(seed: int, files: Iterable[tuple[str, Path]] | None = None) -> Stock:
    """Read some source files, given by name and place; None for those of this machine. Unreadable ones are left out."""
    pieces: list[Piece] = []
    excerpts: list[Excerpt] = []
    passages: list[Passage] = list(_topics())
    for name, path in _files(seed) if files is None else files:
        try:
            text = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue
        draw = Random(f"{seed} {name}")
        definitions = list(_definitions(tree.body))
        found = list(_pieces(name, text, definitions))
        pieces += draw.sample(found, min(PIECES_OF_A_FILE, len(found)))
        excerpts += _excerpts(name, text, tree, draw)
        documented = (ast.get_docstring(node) or "" for node in (tree, *definitions))
        passages += [passage for docstring in documented for passage in _paragraphs(name, docstring)][
            :PASSAGES_OF_A_FILE
        ]
    draw = Random(seed)
    for found_here in (pieces, excerpts, passages):
        draw.shuffle(found_here)
    return Stock(tuple(pieces), tuple(excerpts), tuple(passages))


def _files(seed: int) -> Iterator[tuple[str, Path]]:
    """Name and place of the files to read: all of the standard library, some of each package."""
    paths = sysconfig.get_paths()
    library = Path(paths["stdlib"])
    yield from ((f"python/{name}", path) for name, path in _modules(library))
    packages: dict[str, list[tuple[str, Path]]] = {}
    for name, path in _modules(Path(paths["purelib"])):
        packages.setdefault(name.split("/")[0], []).append((name, path))
    for package, modules in sorted(packages.items()):
        yield from Random(f"{seed} {package}").sample(modules, min(FILES_OF_A_PACKAGE, len(modules)))


def _modules(folder: Path) -> list[tuple[str, Path]]:
    found = []
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if _LEFT_OUT.isdisjoint(inside.parts) and 400 < path.stat().st_size < _LONGEST_FILE:
            found.append((inside.as_posix(), path))
    return found


def _definitions(body: Iterable[ast.stmt]) -> Iterator[_Definition]:
    """Functions and classes, also those inside classes."""
    for node in body:
        if isinstance(node, _Definition):
            yield node
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node.body)


def _pieces(name: str, text: str, definitions: Iterable[_Definition]) -> Iterator[Piece]:
    lines = text.splitlines(keepends=True)
    for node in definitions:
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        stop = node.end_lineno or node.lineno
        if not LINES[0] <= stop - first + 1 <= LINES[1]:
            continue
        cut = textwrap.dedent("".join(lines[first - 1 : stop]))
        statement = node.body[0]
        docstring = ast.get_docstring(node) or ""
        last_of_head = (statement.end_lineno or 0) if docstring else statement.lineno - 1
        head = "".join(cut.splitlines(keepends=True)[: max(1, last_of_head - first + 1)])
        if _is_plain(cut) and not (docstring and len(node.body) == 1):
            yield Piece(name, node.name, cut.rstrip() + "\n", len(head), docstring, isinstance(node, ast.ClassDef))


def _excerpts(name: str, text: str, tree: ast.Module, draw: Random) -> list[Excerpt]:
    """Stretches of up to 60 lines that begin at a statement of the module."""
    lines = text.splitlines(keepends=True)
    starts = [node.lineno for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    found = []
    for first in draw.sample(starts, min(4, len(starts))):
        cut = "".join(lines[first - 1 : first - 1 + draw.randint(8, 60)])
        if _is_plain(cut) and len(cut) > 200:
            found.append(Excerpt(name, cut))
    return found


def _topics() -> Iterator[Passage]:
    """Paragraphs of the language reference that ships with Python."""
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield from _paragraphs(f"python/topics/{name}", text)


def _paragraphs(file: str, text: str) -> Iterator[Passage]:
    """Paragraphs that read as prose: 30 to 160 words, ending as a sentence, hardly any signs of code."""
    for block in text.split("\n\n"):
        words = block.split()
        joined = " ".join(words)
        signs = sum(joined.count(sign) for sign in "=<>{}[]()|\\`*_:#")
        if (
            30 <= len(words) <= 160
            and joined[0].isupper()
            and joined.endswith((".", "!", "?"))
            and signs <= len(words) // 8
            and ">>>" not in joined
            and _is_plain(block)
        ):
            yield Passage(file, joined)


def _is_plain(text: str) -> bool:
    """Whether a text is fit to be shown: ASCII, no control tokens, no long lines."""
    return text.isascii() and "<|" not in text and all(len(line) <= _LONGEST_LINE for line in text.splitlines())
