"""Any target that draftwood runs, through the engine's own model: one document, one token at a time.

Slow, and exactly what is served: its features and its greedy text are the engine's to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.batch import PASS_TOKENS, ForwardInput
from draftwood.cache.registry import kv_pair
from draftwood.cache.sequence import Sequence
from draftwood.formats.gguf import GGUFFile
from draftwood.layers.weights import Weights
from draftwood.models.registry import architecture
from draftwood.training.packing import Rows
from draftwood.training.teachers import base

KV = kv_pair("f32")


def can_teach(source: GGUFFile) -> bool:
    """Whether the engine knows the architecture; it says so itself where it does not."""
    return architecture(source) is not None


def open_teacher(source: GGUFFile, device: str) -> Teacher:
    """Load the model as it is served."""
    return Teacher(source, device)


class Teacher(base.Teacher):
    """The engine's model, and its token table and head as plain float32 matrices for the draft's fit."""

    def __init__(self, source: GGUFFile, device: str) -> None:
        module = architecture(source)
        self.spec = spec = module.read_spec(source)
        self.device = device
        weights = Weights(source, device, "auto")
        self.model = module.build(spec, weights)
        shape = (spec.vocab, spec.hidden)
        self.embedding = weights.dense("token_embd.weight", shape)
        own_head = weights.has("output.weight")
        self.head = weights.dense("output.weight", shape) if own_head else self.embedding

    @torch.no_grad()
    def read(self, rows: Rows, taps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """See `base.Teacher`."""
        count, length = rows.tokens.shape
        features = torch.zeros(count, length, len(taps) * self.spec.hidden, device=self.device)
        hidden = torch.zeros(count, length, self.spec.hidden, device=self.device)
        for row in range(count):
            starts, sizes = rows.start[row].unique(return_counts=True)
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
                if size == 1:  # what lies behind the documents
                    continue
                sequence = self.model.new_sequence(KV, size)
                for first in range(0, size, PASS_TOKENS):
                    part = slice(start + first, start + min(first + PASS_TOKENS, size))
                    tokens = rows.tokens[row, part]
                    positions = torch.arange(first, first + len(tokens), device=self.device)
                    output = self.model.prefill(ForwardInput(tokens, positions, wanted=taps), sequence)
                    hidden[row, part] = output.hidden
                    if output.features is not None:
                        features[row, part] = output.features
        return features, hidden

    def decoder(self, sequences: int, capacity: int) -> BatchDecoder:
        """See `base.Teacher`."""
        return BatchDecoder(self, sequences, capacity)


class BatchDecoder(base.BatchDecoder):
    """A sequence state for each place."""

    def __init__(self, teacher: Teacher, sequences: int, capacity: int) -> None:
        self._teacher, self._capacity = teacher, capacity
        self._states: list[Sequence | None] = [None] * sequences
        self._logits = torch.zeros(sequences, teacher.spec.vocab, device=teacher.device)

    @torch.no_grad()
    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See `base.BatchDecoder`."""
        model = self._teacher.model
        only = torch.zeros(1, dtype=torch.long, device=model.device)
        for place, position in enumerate(positions.tolist()):
            state = self._states[place]
            if position == 0:
                state = self._states[place] = model.new_sequence(KV, self._capacity)
            if state is None or position < state.length:
                continue
            token = tokens[place : place + 1]
            inputs = ForwardInput(token, positions[place : place + 1], only - 1)
            self._logits[place] = model.logits(model.decode(inputs, state).hidden)[0]
            state.commit(only, token, 1)
        return self._logits
