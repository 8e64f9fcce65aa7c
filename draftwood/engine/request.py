"""What a generation gives back."""

from __future__ import annotations

from dataclasses import dataclass

from draftwood.decode.stats import Statistics


@dataclass(frozen=True)
class GenerationResult:
    """A finished (or interrupted) generation.

    token_ids: the emitted ids, the stop token included if one was met. text: their characters, control tokens left
    out. finish_reason: "stop" (a stop token), "length" (max_tokens or the context is full), "interrupted".
    """

    token_ids: list[int]
    text: str
    finish_reason: str
    stats: Statistics


@dataclass(frozen=True)
class GenerationEvent:
    """New tokens of a running generation: what one round (or the prefill) decided.

    text: the characters that became complete. result: the whole result, on the last event only.
    """

    token_ids: list[int]
    text: str
    result: GenerationResult | None = None
