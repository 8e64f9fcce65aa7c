"""What a decode pass costs on this machine, by rows: measured once, when `method="auto"` first asks."""

from __future__ import annotations

import statistics
import time

import torch

from draftwood.batch import ForwardInput
from draftwood.cache.spec import KVSpec
from draftwood.decode.drafters.base import Drafter
from draftwood.decode.policy import Costs
from draftwood.decode.tree import TreeShape
from draftwood.models.base import Model

ROWS = (1, 2, 4, 8, 16, 32)
REPEATS = 3
SAMPLE_PROMPT = 64


def _seconds(action: object, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()  # type: ignore[operator]
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(target: Model, drafter: Drafter, kv: tuple[KVSpec, KVSpec]) -> Costs:
    """Median seconds of a pass of 1..32 rows after a short context, and of one proposal."""
    sequence = target.new_sequence(kv, SAMPLE_PROMPT)
    tokens = torch.arange(SAMPLE_PROMPT, device=target.device) % target.spec.vocab
    output = target.prefill(ForwardInput(tokens, tokens, wanted=drafter.wants), sequence)
    drafter.start(tokens)
    drafter.observe(tokens, output.features)

    def verify(rows: int) -> None:
        nodes = torch.arange(rows, device=target.device)
        inputs = ForwardInput(tokens[:rows], nodes + sequence.length, nodes - 1, wanted=drafter.wants)
        target.logits(target.decode(inputs, sequence).hidden)

    def propose() -> None:
        drafter.propose(tokens[0], TreeShape("chain", budget=max(1, min(15, drafter.max_depth))))

    verify(1)
    propose()
    seconds = [
        statistics.median(_seconds(lambda n=rows: verify(n), target.device) for _ in range(REPEATS)) for rows in ROWS
    ]
    return Costs(ROWS, tuple(seconds), statistics.median(_seconds(propose, target.device) for _ in range(REPEATS)))
