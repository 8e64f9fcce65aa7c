"""Prompts as long as one likes: a real one again and again, or a long text of the user's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from draftwood.bench.prompts.editing import REQUEST
from draftwood.errors import FileError, UsageError

if TYPE_CHECKING:
    from draftwood.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class LongPrompt:
    """ids: of all its tokens. about: what it is, for people. sha256: of the text it was made from, in hex."""

    ids: list[int]
    about: str
    sha256: str


def repeated(tokenizer: Tokenizer, length: int) -> LongPrompt:
    """The request of the editing task as often as `length` ids take; it opens as a prompt of this model does."""
    once = tokenizer.encode(f"{REQUEST}\n\n", special=False)
    ids = tokenizer.encode("", special=False, add_bos=tokenizer.adds_bos)
    ids += once * (-(-length // len(once)))
    return LongPrompt(ids[:length], "a request to edit a function, again and again (easy to guess)", _digest(REQUEST))


def of_file(tokenizer: Tokenizer, path: Path, length: int) -> LongPrompt:
    """The first `length` ids of a text; a UsageError says how many there are if those are fewer."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path.name[:60]} is not text in UTF-8; give --text another file.") from error
    ids = tokenizer.encode(text, special=False, add_bos=tokenizer.adds_bos)
    if len(ids) < length:
        raise UsageError(
            f"--text gives {len(ids):,} tokens for this model, but the longest context reads {length:,}; "
            "give a longer text or shorter --contexts."
        )
    return LongPrompt(ids[:length], f"the text {path.name[:60]}", _digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
