"""Sets of prompts by name, each pinned by a hash: one file, one line a set."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from draftwood.bench.prompts.humaneval import Prompt
    from draftwood.text.tokenizer import Tokenizer

PROMPT_SETS: dict[str, str] = {
    "humaneval": "draftwood.bench.prompts.humaneval",
    "chat": "draftwood.bench.prompts.chat",
}
"""Name -> its module, which offers `for_target(tokenizer) -> list[Prompt]`: the texts as the target is to read them."""


def prompts_for(name: str, tokenizer: Tokenizer | None) -> list[Prompt]:
    """A set's prompts for a target; a UsageError where the target cannot be given them."""
    build: Callable[[Tokenizer | None], list[Prompt]] = import_module(PROMPT_SETS[name]).for_target
    return build(tokenizer)
