"""Rows kept as codes in rotated space; the KV types of less than 16 bits differ in their code alone."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from draftwood.cache.base import Plane
from draftwood.kernels.hadamard import rotate, rotation

Fields = dict[str, Tensor]
"""An encoded row's parts by name; the last axis of each belongs to the row."""


class CodedPlane(Plane):
    """Rows as the fields of a code, each in a buffer [G, rows, width] of its own, so that all of them are aligned.

    A type gives `layout`, `encode` and `decode`. What it encodes is rotated: a head's few large values, which would
    coarsen the steps of all others, are spread over the head first (DESIGN section 5, kernels/hadamard).
    """

    def __init__(self, heads: int, head_dim: int, capacity: int, device: str) -> None:
        super().__init__(heads, head_dim, capacity, device)
        self._there, self._back = rotation(head_dim, device)
        self._fields = {
            name: torch.empty(heads, self.rows, width, dtype=dtype, device=device)
            for name, (dtype, width) in self.layout(head_dim).items()
        }

    @staticmethod
    @abstractmethod
    def layout(head_dim: int) -> dict[str, tuple[torch.dtype, int]]:
        """Dtype and width of each field of a row."""

    @abstractmethod
    def encode(self, rows: Tensor) -> Fields:
        """Rotated rows float32 [..., D] -> fields [..., width]; a row's depend on nothing else."""

    @abstractmethod
    def decode(self, fields: Fields) -> Tensor:
        """Fields [..., width] -> rows float32 [..., D], still rotated."""

    def enter(self, rows: Tensor) -> Tensor:
        """Rotate head vectors."""
        return rotate(rows, self._there)

    def leave(self, rows: Tensor) -> Tensor:
        """Undo the rotation."""
        return rotate(rows, self._back)

    def write(self, rows: Tensor, at: int) -> None:
        """Rotate and encode rows [n, G, D] at row `at`."""
        for name, field in self.encode(self.enter(rows)).items():
            self._fields[name][:, at : at + len(rows)] = field.transpose(0, 1)

    def move(self, source: Tensor, at: int) -> None:
        """Copy rows `source` to row `at`."""
        for buffer in self._fields.values():
            buffer[:, at : at + len(source)] = buffer[:, source]

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop-1 decoded and still rotated, float32 [G, n, D]."""
        return self.decode({name: buffer[:, start:stop] for name, buffer in self._fields.items()})

    def buffers(self) -> Fields:
        """The fields."""
        return self._fields
