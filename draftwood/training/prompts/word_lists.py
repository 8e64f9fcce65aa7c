"""Lists of words and lines kept beside the code: `[name]` opens a list, every other line is an entry."""

from __future__ import annotations

import functools
import re
from importlib import resources
from random import Random
from typing import Final

_SLOT: Final = re.compile(r"\{(\w+)\}")


@functools.cache
def read_lists(file: str) -> dict[str, tuple[str, ...]]:
    """The lists of a file of this folder, by name. `\\n` in an entry is a line break; `#` begins a comment line."""
    lists: dict[str, list[str]] = {}
    entries: list[str] = []
    for line in resources.files(__package__).joinpath(file).read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            entries = lists.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            entries.append(line.replace("\\n", "\n"))
    return {name: tuple(lines) for name, lines in lists.items()}


def fill(template: str, words: dict[str, tuple[str, ...]], draw: Random) -> tuple[str, str]:
    """`template` with every `{list}` replaced by an entry of that list, and what the first slot became.

    A template without slots is its own key. A slot that occurs twice gets two entries, different if possible.
    """
    key = ""
    used: set[str] = set()

    def entry(match: re.Match[str]) -> str:
        nonlocal key
        choices = words[match[1]]
        word = draw.choice(choices)
        for _ in range(8):
            if word not in used:
                break
            word = draw.choice(choices)
        used.add(word)
        key = key or f"{match[1]}: {word}"
        return word

    text = _SLOT.sub(entry, template)
    return text, key or template
