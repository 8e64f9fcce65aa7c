"""What a request asks of decoding: how long, how random, where to stop.  Free of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from draftwood.errors import UsageError

MAX_SEED = 2**64 - 1


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _token_ids(value: object) -> tuple[int, ...] | None:
    """`value` as a tuple, or None unless it is a collection of non-negative integers."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        return None
    ids = tuple(value)
    return ids if all(_is_int(token) and token >= 0 for token in ids) else None


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Immutable settings of one request; the defaults decode greedily.

    max_tokens           tokens to emit at most, >= 1
    temperature          >= 0; 0 takes the likeliest token and ignores seed, top_k, top_p and min_p
    top_k                keep the k likeliest tokens; 0 keeps all
    top_p                keep the smallest set of likeliest tokens with at least this probability, in (0, 1]
    min_p                keep tokens at least this fraction as likely as the likeliest one, in [0, 1]
    repetition_penalty   > 0; divides positive and multiplies negative logits of tokens in prompt or output
    frequency_penalty    taken off a logit once per earlier occurrence in the output
    presence_penalty     taken off a logit once if the token occurs in the output
    seed                 64-bit key of the random draws, 0..2**64-1
    stop_token_ids       ids that end generation besides the model's own end tokens
    ignore_eos           True keeps generating past the model's own end tokens

    Raises UsageError where a value is outside these limits.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        self._require("max_tokens", "a whole number of at least 1", _is_int, lambda value: value >= 1)
        self._require("temperature", "a finite number of at least 0", _is_real, lambda value: value >= 0)
        self._require("top_k", "a whole number of at least 0 (0 keeps all)", _is_int, lambda value: value >= 0)
        self._require("top_p", "a number above 0 and at most 1", _is_real, lambda value: 0 < value <= 1)
        self._require("min_p", "a number from 0 to 1", _is_real, lambda value: 0 <= value <= 1)
        self._require("repetition_penalty", "a finite number above 0", _is_real, lambda value: value > 0)
        self._require("frequency_penalty", "a finite number", _is_real)
        self._require("presence_penalty", "a finite number", _is_real)
        self._require("seed", "a whole number from 0 to 2**64 - 1", _is_int, lambda value: 0 <= value <= MAX_SEED)
        self._require("ignore_eos", "True or False", lambda value: isinstance(value, bool))
        ids = _token_ids(self.stop_token_ids)
        self._require("stop_token_ids", "a list of token ids, whole numbers of at least 0", lambda _: ids is not None)
        object.__setattr__(self, "stop_token_ids", ids)

    def _require(self, name: str, expected: str, *tests: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if not all(test(value) for test in tests):
            found = repr(value)
            found = found if len(found) <= 60 else found[:57] + "..."
            raise UsageError(f"{name} is {found}, but must be {expected}; give another {name}.")

    @property
    def greedy(self) -> bool:
        """True if the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def penalised(self) -> bool:
        """True if earlier tokens change the logits."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0
