"""Stage `agree`: the engine with the exported draft against the training code on the same weights.

Both count tokens a round of chains over the text that the engine writes for held-out prompts. What the two forwards
share is the weights alone, so taps, masks, positions or a chat template that differ show here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from draftwood.decode.params import SamplingParams
from draftwood.engine.engine import Engine
from draftwood.formats.gguf import GGUFFile
from draftwood.layers.weights import Weights
from draftwood.training.corpus import Corpus, Tokens
from draftwood.training.draft_net import DraftNet, DraftShape
from draftwood.training.evaluate import judge
from draftwood.training.fit import Replay
from draftwood.training.masks import realisation_for
from draftwood.training.packing import Document
from draftwood.training.recipe import Recipe
from draftwood.training.roles import SUPERVISED
from draftwood.training.teachers import open_teacher

LARGEST_DIFFERENCE = 0.05
"""Of tokens a round, engine against training code; more means that one of them is wrong."""

PROMPTS = 40

_ANSWER = 40, 160
"""Tokens of the held-out answers whose prompts are used, least and most."""


def agree(
    recipe: Recipe,
    shape: DraftShape,
    corpus: Corpus,
    target: GGUFFile,
    draft: Path,
    device: str,
    tell: Callable[[str], None],
) -> dict[str, float]:
    """Tokens a round of the engine and of the training code, `engine` and `training`, and `prompts`, how many.

    shape: the draft's. draft: the exported file. device: "cpu" or "cuda".
    """
    chosen = _prompts(corpus, recipe)
    source = GGUFFile.open(draft)
    listed = source.get("dflash.shortlist")
    engine = Engine.load(recipe.target, draft=str(draft), device=device, max_context=recipe.fit.row_tokens)
    decided = rounds = 0
    written: list[Document] = []
    for prompt, length in chosen:
        params = SamplingParams(max_tokens=length)
        answer = engine.generate(prompt.tolist(), params, method="chain", budget=shape.block - 1)
        decided, rounds = decided + answer.stats.emitted - 1, rounds + answer.stats.rounds
        ids = np.concatenate((prompt.astype(np.int64), answer.token_ids))
        written.append((ids, np.where(np.arange(len(ids)) < len(prompt), 0, SUPERVISED).astype(np.uint8)))
    tell(f"engine: {decided / max(1, rounds):.3f} tokens a round over {len(chosen)} held-out prompts")
    teacher = open_teacher(target, device)
    net = DraftNet(shape, teacher.embedding, recipe.fit.row_tokens).to(device)
    weights = Weights(source, device, "float32")
    net.load_state_dict({name: weights.dense(name, tuple(value.shape)) for name, value in net.state_dict().items()})
    shortlist = None if listed is None else torch.tensor(listed, device=device)
    replay = Replay(teacher, net, realisation_for(device))
    longest = max(len(ids) for ids, _ in written)
    judged = judge(replay, teacher.head, written, longest, 1, shortlist=shortlist)
    found = {"engine": decided / max(1, rounds), "training": judged.tau_chain(), "prompts": float(len(chosen))}
    tell(f"training code, same weights and text: {found['training']:.3f} ({difference(found):+.1%})")
    return found


def difference(found: dict[str, float]) -> float:
    """How much more the engine accepts than the training code, as a share."""
    return found["engine"] / found["training"] - 1


def _prompts(corpus: Corpus, recipe: Recipe) -> list[tuple[Tokens, int]]:
    """At most PROMPTS prompts of held-out greedy sequences with one sound answer, and the length of that answer."""
    candidates = np.flatnonzero(corpus.held_out & corpus.greedy & ~corpus.looping)
    chosen = []
    for index in np.random.default_rng(recipe.seed).permutation(candidates):
        tokens, roles = corpus.sequence(int(index))
        taught = np.flatnonzero(roles == SUPERVISED)
        first, length = int(taught[0]), len(taught)
        one_answer = taught[-1] - first + 1 == length
        if one_answer and _ANSWER[0] <= length <= _ANSWER[1] and first + length <= recipe.fit.row_tokens:
            chosen.append((tokens[:first], length))
        if len(chosen) == PROMPTS:
            break
    return chosen
