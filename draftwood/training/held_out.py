"""Stage `evaluate`: what a draft does on text whose prompts' sources it never saw, with every control beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from draftwood.training.corpus import Corpus
from draftwood.training.evaluate import Judged, controls, judge, look_up
from draftwood.training.fit import Fitter
from draftwood.training.packing import Document
from draftwood.training.recipe import Recipe
from draftwood.training.roles import SUPERVISED

SEQUENCES = 768
BLOCKS = (4, 6, 8, 12, 16)


def shortlist(corpus: Corpus, count: int) -> tuple[int, ...] | None:
    """The `count` most frequent supervised tokens of the training part, ascending; None for 0."""
    if not count:
        return None
    learnt = corpus.select(~corpus.held_out)
    frequency = np.bincount(learnt.tokens[learnt.roles == SUPERVISED])
    return tuple(sorted(np.argsort(-frequency, kind="stable")[:count].tolist()))


def evaluate(
    recipe: Recipe, fitter: Fitter, corpus: Corpus, tell: Callable[[str], None], with_controls: bool = True
) -> dict[str, Any]:
    """Tokens a round by part and temperature, acceptance by slot, the loop control and the other controls.

    Looping tails are marked in the text and count only in `tau_chain_with_loops`.
    """
    held = np.random.default_rng(recipe.seed).permutation(np.flatnonzero(corpus.held_out))[:SEQUENCES]
    sequences: list[Document] = [corpus.sequence(int(index)) for index in held]
    sound = ~corpus.looping[held]
    greedy = corpus.greedy[held] & sound
    head, fit = fitter.replay.teacher.head, recipe.fit

    def run(**options: Any) -> Judged:
        return judge(fitter.replay, head, sequences, fit.row_tokens, fit.rows, **options)

    whole = run()
    parts = {name: greedy & (corpus.part[held] == number) for number, name in enumerate(corpus.parts)}
    result: dict[str, Any] = {
        "sequences": len(sequences),
        "tau_chain_greedy": whole.tau_chain(greedy),
        "tau_chain_sampled": whole.tau_chain(~corpus.greedy[held] & sound),
        "tau_chain_with_loops": whole.tau_chain(corpus.greedy[held]),
        "tau_anchor": whole.tau_anchor,
        "by_part": {name: whole.tau_chain(chosen) for name, chosen in parts.items() if chosen.any()},
        "slot_right": whole.slot_right,
        "slot_conditional": whole.slot_conditional,
        "expected_by_block": {str(rows): whole.expected(rows) for rows in BLOCKS if rows <= fitter.net.shape.block},
        "loops": whole.loops,
    }
    tell(f"held out: tau {result['tau_chain_greedy']:.3f} greedy, {result['tau_chain_sampled']:.3f} sampled")
    listed = shortlist(corpus, recipe.draft.shortlist)
    if listed is not None:
        narrow = run(shortlist=torch.tensor(listed, device=head.device))
        result["tau_chain_shortlist"] = narrow.tau_chain(greedy)
        tell(f"proposing from {len(listed)} tokens: tau {result['tau_chain_shortlist']:.3f}")
    if with_controls:
        found = {name: run(control=control).tau_chain(greedy) for name, control in controls(fitter.net).items()}
        found["untrained draft"] = _untrained(fitter, recipe.seed, run).tau_chain(greedy)
        found["2-gram look-up"] = look_up(sequences, fit.row_tokens, recipe.draft.block).tau_chain(greedy)
        result["controls"] = found
        for name, value in found.items():
            tell(f"control, {name}: tau {value:.3f}")
    return result


def _untrained(fitter: Fitter, seed: int, run: Callable[[], Judged]) -> Judged:
    """The same with fresh weights; the trained ones come back."""
    trained = {name: value.clone() for name, value in fitter.net.state_dict().items()}
    fitter.net.initialise(torch.Generator(fitter.device).manual_seed(seed))
    judged = run()
    fitter.net.load_state_dict(trained)
    return judged
