"""What the parts of the training prompts write with: the chat format, the system lines, the Python source."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from random import Random
from typing import Final

from draftwood.training.prompts.chat_format import ChatFormat
from draftwood.training.prompts.python_source import Stock, gather
from draftwood.training.prompts.scripts import ANSWER, USER
from draftwood.training.prompts.word_lists import fill, read_lists

_OTHER_SYSTEM: Final = 0.10
"""Share of the chats that do not have the template's own system message."""
_EMPTY_SYSTEM: Final = 0.25
"""Share of those whose system message is empty."""


@dataclass(frozen=True)
class Draft:
    """A script before it is decided how it is answered. share_of_cap: how much of the usual length its answers get."""

    tokens: tuple[int, ...]
    source: str
    share_of_cap: float = 1.0


class Desk:
    """Composes chats as ids. seed: of everything that is gathered once for all scripts."""

    def __init__(self, form: ChatFormat, seed: int) -> None:
        self.form, self._seed = form, seed

    @functools.cached_property
    def stock(self) -> Stock:
        """Pieces of real Python source; reading them takes some seconds."""
        return gather(self._seed)

    def system(self, draw: Random) -> str | None:
        """A system message: mostly None, which stands for the template's own."""
        if draw.random() >= _OTHER_SYSTEM:
            return None
        return "" if draw.random() < _EMPTY_SYSTEM else _own_system(draw)

    def asked(self, draw: Random, text: str) -> tuple[int, ...]:
        """A chat whose user says `text`."""
        form = self.form
        return (*form.head(self.system(draw)), *form.said(text), form.turn_end, *form.to_answer, ANSWER)

    def continued(self, text: str) -> tuple[int, ...]:
        """A text without a chat around it, which the target continues."""
        return (*self.form.raw(text), ANSWER)

    def begun(self, system: str | None, opener: str) -> tuple[int, ...]:
        """A chat whose user begins with `opener` and goes on as the target likes."""
        form = self.form
        return (*form.head(system), *form.said(opener), USER, *form.to_answer, ANSWER)

    def followed(self, opener: str) -> tuple[int, ...]:
        """A further user turn, to be put behind an answer."""
        form = self.form
        return (*form.to_user, *form.said(opener), USER, *form.to_answer, ANSWER)


def _own_system(draw: Random) -> str:
    """One of our own system lines."""
    lists = read_lists("systems.txt")
    return draw.choice(lists["line"]) if draw.random() < 0.5 else fill(draw.choice(lists["form"]), lists, draw)[0]
