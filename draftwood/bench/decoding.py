"""Greedy rounds from where a sequence stands, captured where device and drafter allow it: what benchmarks time."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from draftwood.cache.sequence import Sequence
from draftwood.decode.drafters.base import Drafter
from draftwood.decode.params import SamplingParams
from draftwood.decode.round import Decoder
from draftwood.decode.sampling import Sampler
from draftwood.engine.engine import Engine
from draftwood.engine.runner import Runner
from draftwood.models.base import Model

WARM_UP = 3
"""Rounds before rounds are timed: on a GPU they compile and capture them."""


class Decoding:
    """The rounds of one sequence with one drafter. runner: what captures them, None for rounds that need the host."""

    def __init__(self, model: Model, sequence: Sequence, drafter: Drafter, runner: Runner | None) -> None:
        self._model, self._sequence, self._drafter, self._runner = model, sequence, drafter, runner
        self._params = SamplingParams()

    def begin(self, pending: Tensor) -> Runner | Decoder:
        """What runs the rounds from the sequence's present end on, `pending` (int64 []) being the token after it."""
        if self._runner is None:
            sampler = Sampler(self._params, self._model.spec.vocab, self._model.device, pending.reshape(1))
            return Decoder(self._model, self._sequence, self._drafter, sampler, pending)
        self._runner.begin(self._params)
        self._runner.pending.copy_(pending)
        return self._runner


def sequence_for(engine: Engine, capacity: int) -> Sequence:
    """An empty sequence for so many tokens: the engine's own where it is as long, since a plan has room for one."""
    kept = engine.sequence
    if kept is None or kept.capacity < capacity:
        return engine.target.model.new_sequence(engine.kv, capacity)
    kept.truncate(0)
    return kept


def now(device: str) -> float:
    """Seconds on a clock, once a device ("cpu", "cuda") has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()
