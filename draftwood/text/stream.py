"""Token ids to text as they arrive, in whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from draftwood.text.tokenizer import Tokenizer


class TextStream:
    """Incremental detokenisation of one sequence.

    However the ids are divided, the texts returned by `push` followed by that of `flush` join to
    `tokenizer.decode(ids, skip_special)`. Bytes that may still become a character are held back.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete, "" if none. Raises UsageError for an id out of range."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids, self._skip_special))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, else ""."""
        return self._decoder.decode(b"", final=True)
