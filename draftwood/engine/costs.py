"""What a decode pass and a proposal cost on this machine: measured once, when an engine is loaded with a draft."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import accumulate

import torch

from draftwood.batch import ForwardInput
from draftwood.cache.spec import KVSpec
from draftwood.decode.drafters.base import Drafter
from draftwood.decode.policy import Arm, Costs
from draftwood.engine.graphs import capture
from draftwood.kernels.draft_tree import load_grow
from draftwood.models.base import Model

ROWS = (1, 2, 4, 8, 16)
REPEATS, MOST_REPEATS = 3, 8
AGREEMENT = 1.15
"""Two runs agree if the longer one took less than this times the shorter one."""

SAMPLE_PROMPT = 64
ACCEPTED_ROWS = 2
"""Rows that a proposal has to read first, as after a round that accepted a candidate."""


def measure(target: Model, drafter: Drafter, kv: tuple[KVSpec, KVSpec], arms: list[Arm]) -> Costs:
    """Least seconds of a pass of 1..16 rows after a short context, and of a proposal of each arm but the first."""
    sequence = target.new_sequence(kv, SAMPLE_PROMPT)
    tokens = torch.arange(SAMPLE_PROMPT, device=target.device) % target.spec.vocab
    features = target.prefill(ForwardInput(tokens, tokens, wanted=drafter.wants), sequence).features

    def verify(rows: int) -> None:
        nodes = torch.arange(rows, device=target.device)
        inputs = ForwardInput(tokens[:rows], nodes + sequence.length, nodes - 1, wanted=drafter.wants)
        target.logits(target.decode(inputs, sequence).hidden)

    def observe(rows: slice) -> None:
        drafter.observe(tokens[rows], None if features is None else features[rows])

    def propose(arm: Arm) -> None:
        observe(slice(ACCEPTED_ROWS))
        drafter.propose(tokens[0], arm.shape)

    def grow(arm: Arm) -> None:
        guesses, growth = drafter.guess(tokens[0], arm.shape), arm.shape.growth
        build(tokens[0], guesses.tokens, guesses.scores, sequence.committed, growth, guesses.normaliser)
        if features is not None:
            drafter.keep(features[:ACCEPTED_ROWS], tokens[:ACCEPTED_ROWS], nothing)

    def settle() -> None:
        drafter.start(tokens)
        observe(slice(SAMPLE_PROMPT - ACCEPTED_ROWS * MOST_REPEATS))

    captured = target.device != "cpu" and drafter.on_device and sequence.on_device
    build = load_grow(target.device)
    nothing = torch.zeros((), dtype=torch.int64, device=target.device)
    seconds = [_least(lambda n=rows: verify(n), target.device, captured) for rows in ROWS]  # type: ignore[misc]
    # More rows never take less: where they seem to, another program ran while fewer were timed.
    ascending = tuple(accumulate(reversed(seconds), min))[::-1]
    proposals, guess = {}, grow if captured else propose
    for arm in arms[1:]:
        settle()
        drafter.make_room(arm.shape.budget + 1)
        proposals[arm.shape.kind, arm.depth] = _least(lambda arm=arm: guess(arm), target.device, captured)  # type: ignore[misc]
    return Costs(ROWS, ascending, proposals)


def _least(action: Callable[[], None], device: str, captured: bool) -> float:
    """The shortest of a few runs, of more if the two shortest differ: another program took the core meanwhile.

    captured: as a graph, which is how a round that does not need the host runs.
    """
    if captured:
        action = capture(action, warm=True).replay
    runs: list[float] = []
    while len(runs) < REPEATS or (len(runs) < MOST_REPEATS and runs[1] > AGREEMENT * runs[0]):
        runs = sorted([*runs, _seconds(action, device)])
    return runs[0]


def _seconds(action: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
