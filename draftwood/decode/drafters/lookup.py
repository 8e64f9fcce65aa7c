"""Look-up: propose what followed earlier occurrences of the last tokens in the context.

It needs no model and works with every target; on copied text and code edits most of a line is a repetition. The last
tokens are matched against the whole context; the longest matches come first, recent ones before old ones, and a match
is followed for as many tokens as it is long, since a long match seldom ends at once. Several continuations are merged
into one tree. (Following further lengthens acceptance but costs more rows than it saves: docs/log.md, 2026-11-25.)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from draftwood.decode.drafters.base import Drafter, DrafterRequest
from draftwood.decode.drafters.none import root_only
from draftwood.decode.tree import MAX_NODES, ROOT_ONLY, DraftTree, TreeShape, merge_paths

KEY = 2
"""Tokens that must agree before a match counts; single tokens recur by chance too often."""

LONGEST = 32
"""Match lengths are not told apart beyond this."""

OCCURRENCES = 64
"""Most recent occurrences of a key that are looked at."""


class LookupDrafter(Drafter):
    """An index from every pair of adjacent tokens to where it ended."""

    name = "lookup"
    max_depth = MAX_NODES - 1

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}

    def start(self, prompt: Tensor) -> None:
        """Forget the last sequence; the prompt itself arrives through `observe`."""
        self._tokens = []
        self._ends = {}

    def observe(self, tokens: Tensor, features: Tensor | None) -> None:
        """Index committed tokens."""
        for token in tokens.tolist():
            self._tokens.append(token)
            if len(self._tokens) >= KEY:
                self._ends.setdefault(tuple(self._tokens[-KEY:]), []).append(len(self._tokens))

    def mark(self) -> Any:
        """How many tokens are indexed."""
        return len(self._tokens)

    def rewind(self, mark: Any) -> None:
        """Take the tokens since then out of the index, the last one first."""
        while len(self._tokens) > mark:
            if len(self._tokens) >= KEY:
                self._ends[tuple(self._tokens[-KEY:])].pop()
            self._tokens.pop()

    def propose(self, pending: Tensor, shape: TreeShape) -> DraftTree:
        """The best continuation for a chain, several merged for a tree."""
        if shape == ROOT_ONLY:
            return root_only(pending)
        context = [*self._tokens[-LONGEST:], int(pending)]
        ends = self._ends.get(tuple(context[-KEY:]), [])[-OCCURRENCES:]
        matches = sorted(((self._agreement(end, context), end) for end in ends), reverse=True)
        paths = [self._tokens[end : end + min(length, shape.deepest)] for length, end in matches]
        paths = [path for path in paths if path]
        if not paths:
            return root_only(pending)
        return merge_paths(pending, paths if shape.branching else paths[:1], shape.budget)

    def _agreement(self, end: int, context: list[int]) -> int:
        """How many tokens before `end` agree with the end of the context."""
        length = 0
        while length < len(context) and length < end and self._tokens[end - 1 - length] == context[-1 - length]:
            length += 1
        return length


def open_drafter(request: DrafterRequest) -> Drafter:
    """See `decode.drafters.registry`."""
    return LookupDrafter()
