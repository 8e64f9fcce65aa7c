"""The ids that a target's own chat template puts around what is said, found by rendering it with marked contents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from draftwood.errors import UsageError
from draftwood.text.chat_template import ChatTemplate
from draftwood.text.tokenizer import Tokenizer

_MARKS: Final = ("Qfirstq", "Qanswerq", "Qsecondq")


class ChatFormat:
    """Pieces of a conversation as ids.

    turn_end: the token that closes a turn. to_answer: from the end of a user's turn, which is already there, to
    the answer's first token. to_user: the same from an answer to the next user turn.

    Contents are encoded as plain text, so a control token written out in them stays text.
    Raises UsageError for a template that does not put contents between marks as they are.
    """

    turn_end: int
    to_answer: tuple[int, ...]
    to_user: tuple[int, ...]

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._heads: dict[str | None, tuple[int, ...]] = {}
        first, answer, second = _MARKS
        turns = [_turn("user", first), _turn("assistant", answer), _turn("user", second)]
        _, _, rest = template.render(turns, add_generation_prompt=True).partition(first)
        inner, found_answer, rest = rest.partition(answer)
        between, found_second, last = rest.partition(second)
        if not (inner and found_answer and between and found_second and last):
            raise UsageError("the target's chat template does not show what is said as it is; no chat can be composed.")
        behind_user, behind_answer = self._special(last), self._special(between)
        self.turn_end = behind_user[0]
        if self.turn_end not in tokenizer.stop_ids or behind_answer[0] != self.turn_end:
            raise UsageError("the target's chat template does not close every turn with a stop token.")
        self.to_answer, self.to_user = behind_user[1:], behind_answer[1:]

    def head(self, system: str | None) -> tuple[int, ...]:
        """Everything before the first word of the user; None takes the template's own system message."""
        if system not in self._heads:
            spoken = [] if system is None else [_turn("system", system)]
            head, _, _ = self._template.render([*spoken, _turn("user", _MARKS[0])]).partition(_MARKS[0])
            self._heads[system] = self._special(head)
        return self._heads[system]

    def said(self, text: str) -> tuple[int, ...]:
        """The ids of a content, without the spaces around it."""
        return tuple(self._tokenizer.encode(text.strip(), special=False))

    def raw(self, text: str) -> tuple[int, ...]:
        """The ids of a text that stands alone, as it is."""
        return tuple(self._tokenizer.encode(text, special=False, add_bos=True))

    def _special(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, special=True))


def _turn(role: str, content: str) -> Mapping[str, str]:
    return {"role": role, "content": content}
