"""Text to be read, not answered: the 164 HumanEval problems with their solutions, one after the other.

English sentences and Python, 103,886 characters, about 32 thousand tokens: real text that is fetched already, pinned
by its hash and the same for every Python.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from draftwood.bench.prompts.humaneval import all_texts
from draftwood.engine.fetch import resolve
from draftwood.errors import FormatError, UsageError

if TYPE_CHECKING:
    from draftwood.text.tokenizer import Tokenizer

ABOUT: Final = "164 HumanEval problems with solutions (MIT), English and Python"
DIGEST: Final = "53783eb18d78036790af21f0604b4068a6728941c48127a22709391009c2ba72"


def running_text() -> str:
    """The text, fetched if need be; a FormatError if it is not the pinned one."""
    text = "\n\n".join(all_texts(resolve("humaneval")))
    if text_sha256(text) != DIGEST:
        raise FormatError(
            "the HumanEval file does not give the pinned text; fetch it again with `draftwood pull humaneval`."
        )
    return text


def text_sha256(text: str) -> str:
    """SHA-256, in hex, over its UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def windows(tokenizer: Tokenizer, text: str, tokens: int, width: int) -> list[list[int]]:
    """The beginning of the text in pieces of `width` ids, the last one shorter, `tokens` ids in all.

    Each is to be read on its own, so each opens as a prompt of this model does. A UsageError says how many tokens there
    are where that is not enough.
    """
    opening = tokenizer.encode("", special=False, add_bos=tokenizer.adds_bos)
    ids = tokenizer.encode(text, special=False)
    step = width - len(opening)
    pieces = [opening + ids[first : first + step] for first in range(0, len(ids), step)]
    there = sum(map(len, pieces))
    if there < tokens:
        raise UsageError(f"--tokens is {tokens:,}, but the text gives {there:,} for this model; ask for fewer.")
    full, rest = divmod(tokens, width)
    return pieces[:full] + ([pieces[full][:rest]] if rest else [])
