"""The prompts of a draft's training text: a table of parts, and the mix that is drawn from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from draftwood.errors import UsageError
from draftwood.text.chat_template import ChatTemplate
from draftwood.text.tokenizer import Tokenizer
from draftwood.training.overlap import RunIndex
from draftwood.training.prompts import chat, code_chat, raw_code, rewrite, structured
from draftwood.training.prompts.chat_format import ChatFormat
from draftwood.training.prompts.desk import Desk, Draft
from draftwood.training.prompts.scripts import USER, Script


@dataclass(frozen=True)
class Part:
    """A genre. write: draws one script of it. share: of all answer tokens. answer: those of a script after filters."""

    write: Callable[[Random, Desk], Draft]
    share: float
    answer: int


PARTS: Final[Mapping[str, Part]] = {
    "chat": Part(chat.begun_by_us, 0.25, 240),
    "chat_asked": Part(chat.asked_by_us, 0.15, 250),
    "chat_turns": Part(chat.several_turns, 0.15, 330),
    "code_chat": Part(code_chat.task, 0.15, 150),
    "raw_code": Part(raw_code.continuation, 0.10, 130),
    "rewrite": Part(rewrite.task, 0.10, 70),
    "structured": Part(structured.task, 0.10, 60),
}
"""Shares follow SPEC-draft-training section 3; `answer` was measured on what SmolLM2-135M-Instruct wrote."""

_TRIES: Final = 200
"""Draws for one script before its part counts as used up."""


def build_scripts(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    seed: int,
    count: int,
    cap: int,
    longest_prompt: int,
    greedy_share: float = 0.65,
    shares: Mapping[str, float] | None = None,
    benchmark: RunIndex | None = None,
) -> list[Script]:
    """`count` scripts, mixed and in an order by `seed`; the same on one machine with one Python.

    cap: tokens of an answer. longest_prompt: tokens and markers of a script at most. shares: of the answer tokens by
    part, instead of the table's; a part that is left out is not drawn. benchmark: scripts that share a run with it are
    drawn again (what the target writes is looked through by `corpus.clean`). Scripts without a written user turn are
    all different. Raises UsageError for unknown parts and for a template that no chat can be composed from.
    """
    chosen = {name: part.share for name, part in PARTS.items()} if shares is None else dict(shares)
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown or not any(chosen.values()):
        raise UsageError(f"the parts of the training text are {', '.join(PARTS)}; {unknown} were asked for.")
    desk = Desk(ChatFormat(tokenizer, template), seed)
    weights = {name: share / PARTS[name].answer for name, share in chosen.items()}
    scripts = []
    for name, number in _numbers(weights, count).items():
        draw = Random(f"{seed} {name}")
        drafts = _different(PARTS[name], draw, desk, number, longest_prompt, benchmark)
        scripts += [
            Script(
                draft.tokens, name, draft.source, draw.random() < greedy_share, max(1, int(cap * draft.share_of_cap))
            )
            for draft in drafts
        ]
    Random(seed).shuffle(scripts)
    return scripts


def _numbers(weights: Mapping[str, float], count: int) -> dict[str, int]:
    """`count` split in proportion to the weights, by largest remainder."""
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    numbers = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(exact, key=lambda name: numbers[name] - exact[name])
    for name in by_rest[: count - sum(numbers.values())]:
        numbers[name] += 1
    return numbers


def _different(
    part: Part, draw: Random, desk: Desk, number: int, longest: int, benchmark: RunIndex | None
) -> list[Draft]:
    """`number` drafts that fit and are clear of the benchmark; fixed prompts occur once."""
    drafts: list[Draft] = []
    seen: set[tuple[int, ...]] = set()
    for _ in range(number):
        for _ in range(_TRIES):
            draft = part.write(draw, desk)
            written = USER in draft.tokens
            fits = len(draft.tokens) <= longest and (written or draft.tokens not in seen)
            if fits and not (benchmark is not None and benchmark.shares_run(draft.tokens)):
                break
        else:
            raise UsageError(
                f"no further script of {longest} tokens at most was found for {part.write.__module__} after "
                f"{len(drafts)}; ask for fewer scripts, or allow longer prompts."
            )
        drafts.append(draft)
        if not written:
            seen.add(draft.tokens)
    return drafts
