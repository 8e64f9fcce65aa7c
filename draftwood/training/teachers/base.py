"""What training asks of a target.

Letters: n rows, S tokens of a row, N sequences of a step, E hidden width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from draftwood.models.spec import ModelSpec
from draftwood.training.packing import Rows


class BatchDecoder(ABC):
    """One step at a time with N sequences of their own lengths."""

    @abstractmethod
    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Feed one token to every sequence: int64 [N] at int64 [N] -> logits [N, V].

        A position of 0 begins a new sequence in that place. A token fed twice at the same position leaves no trace.
        """


class Teacher(ABC):
    """A frozen target. spec: its facts. embedding, head: [V, E] on the device, of one floating dtype."""

    spec: ModelSpec
    device: str
    embedding: Tensor
    head: Tensor

    @abstractmethod
    def read(self, rows: Rows, taps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Read packed documents, each for itself.

        Returns the tapped layers' outputs side by side, [n, S, len(taps) * E], and the hidden rows after the output
        norm, [n, S, E]. taps: layers from 0.
        """

    @abstractmethod
    def decoder(self, sequences: int, capacity: int) -> BatchDecoder:
        """Empty caches for `sequences` of up to `capacity` tokens."""

    def compile(self) -> None:  # noqa: B027  (a form may have nothing to compile)
        """Compile what `read` does; shapes must then stay the same."""
