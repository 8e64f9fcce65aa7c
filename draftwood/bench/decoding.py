"""Greedy rounds from where a sequence stands, captured where device and drafter allow it: what benchmarks time."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from draftwood.cache.sequence import Sequence
from draftwood.decode.drafters.base import Drafter
from draftwood.decode.params import SamplingParams
from draftwood.decode.round import Decoder
from draftwood.decode.sampling import KeyedDraw, Sampler
from draftwood.engine.runner import Runner, assumption
from draftwood.errors import UsageError
from draftwood.models.base import Model

WARM_UP = 3
"""Rounds before rounds are timed: on a GPU they compile and capture them."""


class Decoding:
    """The rounds of one sequence with one drafter; graphs are kept from one beginning to the next.

    assumed: tokens that a drafted round is told to decide on average, None for what the target says; a UsageError
    where rounds are not captured.
    """

    def __init__(self, model: Model, sequence: Sequence, drafter: Drafter, assumed: float | None = None) -> None:
        self.model, self.sequence, self.drafter = model, sequence, drafter
        self._params = SamplingParams()
        self._runner: Runner | None = None
        if sequence.on_device and drafter.on_device:
            told = None if assumed is None else assumption(assumed, model.device)
            self._runner = Runner(model, sequence, drafter, KeyedDraw(model.device), told)
        elif assumed is not None:
            raise UsageError(
                "an acceptance can be assumed in rounds captured on a GPU only, which these KV types, arithmetic or "
                "this draft do not allow; leave them or --assume-acceptance out."
            )

    def begin(self, pending: Tensor) -> Runner | Decoder:
        """What runs the rounds from the sequence's present end on, `pending` (int64 []) being the token after it."""
        if self._runner is None:
            sampler = Sampler(self._params, self.model.spec.vocab, self.model.device, pending.reshape(1))
            return Decoder(self.model, self.sequence, self.drafter, sampler, pending)
        self._runner.begin(self._params)
        self._runner.pending.copy_(pending)
        return self._runner


def now(device: str) -> float:
    """Seconds on a clock, once a device ("cpu", "cuda") has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()
