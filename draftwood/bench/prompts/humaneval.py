"""The ten HumanEval prompts with a started body (SPEC-dflash 7.1), each checked against its pinned hash.

A prompt is the `prompt` field of task i without leading newlines, two newlines instead of three before `def`,
one edit for some tasks, and the first words of a body. They are raw text: no chat template goes around them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from draftwood.engine.fetch import resolve
from draftwood.errors import FormatError

if TYPE_CHECKING:
    from draftwood.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """A named raw text."""

    name: str
    text: str


@dataclass(frozen=True)
class _Recipe:
    """How a task becomes a prompt: replace `old`, append `suffix`; `digest` begins its SHA-256."""

    name: str
    suffix: str
    characters: int
    digest: str
    old: str = ""
    new: str = ""


_RECIPES = (
    _Recipe("has_close_elements", "    for", 353, "eb8ed1bcb5e9bee3", '""" Check', '"""Check'),
    _Recipe(
        "separate_paren_groups",
        "    result = []\n    current_string = []\n    current_depth = 0\n    for",
        574,
        "22d37f12dea840dc",
    ),
    _Recipe("truncate_number", "    return", 339, "4d6228ef4422d001"),
    _Recipe("below_zero", "    balance = 0\n    for op in", 476, "0dd6eb42233302e5"),
    _Recipe("mean_absolute_deviation", "    mean =", 439, "9545160985c29e1e"),
    _Recipe("intersperse", "    result = []\n    for i, n in", 317, "9cd0d5c9209ebdae"),
    _Recipe(
        "parse_nested_parens",
        "    def parse_paren_group(s):\n        depth = 0\n        max_depth = 0\n        for c in",
        520,
        "de6daaf9efa2d062",
        "has three.\n\n",
        "has three.\n",
    ),
    _Recipe("filter_by_substring", "    return", 339, "2fd38d40d559643f"),
    _Recipe("sum_product", "    s = 0\n    p = 1\n    for n in", 403, "221fe1e9b5b64f79"),
    _Recipe(
        "rolling_max",
        "    result = []\n    running_max = None\n    for n in numbers:\n        if running_max is",
        366,
        "641a22ee5177fd0a",
        "List, Tuple",
        "List",
    ),
)


def load_prompts(path: Path) -> list[Prompt]:
    """The ten prompts from `HumanEval.jsonl.gz`; a FormatError if the file does not give the pinned texts."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            tasks = [json.loads(line)["prompt"] for line, _ in zip(lines, _RECIPES, strict=False)]
        return [_build(recipe, task) for recipe, task in zip(_RECIPES, tasks, strict=True)]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path.name} is not the HumanEval file that the ten prompts are made from; "
            "fetch it again with `draftwood pull humaneval`."
        ) from error


def for_target(tokenizer: Tokenizer | None) -> list[Prompt]:
    """The ten prompts, fetched if need be. They are raw text for every target."""
    return load_prompts(resolve("humaneval"))


def all_texts(path: Path) -> list[str]:
    """Every problem of the file with its solution, for those who must stay clear of them (a draft's training)."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    return [problem["prompt"] + problem["canonical_solution"] for problem in problems]


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """SHA-256, in hex, over the UTF-8 of all texts joined without anything between them."""
    return hashlib.sha256("".join(prompt.text for prompt in prompts).encode()).hexdigest()


def _build(recipe: _Recipe, task: str) -> Prompt:
    text = task.lstrip("\n").replace("\n\n\ndef", "\n\ndef")
    if recipe.old:
        text = text.replace(recipe.old, recipe.new)
    text += recipe.suffix
    digest = hashlib.sha256(text.encode()).hexdigest()
    if len(text) != recipe.characters or not digest.startswith(recipe.digest):
        raise ValueError(f"{recipe.name} came out with {len(text)} characters and SHA-256 {digest}")
    return Prompt(recipe.name, text)
