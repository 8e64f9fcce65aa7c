"""Everyday chat: turns that the target writes itself behind our openers, and whole questions of ours."""

from __future__ import annotations

from random import Random
from typing import Final

from draftwood.training.prompts.desk import Desk, Draft
from draftwood.training.prompts.word_lists import fill, read_lists

_WITHOUT_OPENER: Final = 0.5
"""Share of the chats with a system line of ours whose user turn the target begins itself."""
_COMPOSED_OPENERS: Final = 0.4
_KINDS: Final = {"everyday": 0.35, "explain": 0.3, "writing": 0.2, "code": 0.15}
"""Lists of requests.txt, and how often each is drawn from."""


def begun_by_us(draw: Random, desk: Desk) -> Draft:
    """One turn: our opener, continued by the target (Magpie style, SPEC-draft-training section 3)."""
    system = desk.system(draw)
    if system and draw.random() < _WITHOUT_OPENER:
        return Draft(desk.begun(system, ""), f"system: {system}")
    opener, source = _opener(draw)
    return Draft(desk.begun(system, opener), source)


def several_turns(draw: Random, desk: Desk) -> Draft:
    """Two turns, sometimes three. The source is that of the first; the short follow-ups are shared by all."""
    first = begun_by_us(draw, desk)
    tokens = first.tokens
    for _ in range(1 if draw.random() < 0.75 else 2):
        tokens += desk.followed(draw.choice(read_lists("followups.txt")["line"]) if draw.random() < 0.85 else "")
    return Draft(tokens, first.source)


def asked_by_us(draw: Random, desk: Desk) -> Draft:
    """A whole question about one of our topics."""
    kind = draw.choices(list(_KINDS), list(_KINDS.values()))[0]
    text, source = fill(draw.choice(read_lists("requests.txt")[kind]), read_lists("topics.txt"), draw)
    return Draft(desk.asked(draw, text), source)


def _opener(draw: Random) -> tuple[str, str]:
    lists = read_lists("openers.txt")
    if draw.random() >= _COMPOSED_OPENERS:
        opener = draw.choice(lists["line"])
        return opener, f"opener: {opener}"
    return fill(draw.choice(lists["form"]), read_lists("topics.txt"), draw)
