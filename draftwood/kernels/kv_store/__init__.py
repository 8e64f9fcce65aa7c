"""Rows into a KV cache: encoding them, keeping those that a round accepted, and the rotation of head vectors alone.

On a CPU a cache's planes write their own rows (`cache.base.Plane.write`), which is what `store_rows` is held to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from draftwood.kernels._rows import require
from draftwood.kernels._select import load_device_module, load_form
from draftwood.kernels.codec import KeptRows

__all__ = [
    "CommitRows",
    "RotateRows",
    "RowTable",
    "StoreRows",
    "load_commit_rows",
    "load_rotate_rows",
    "load_store_rows",
    "row_table",
]


class StoreRows(Protocol):
    """Encodes rows of K and V, rotated where their types rotate."""

    def __call__(
        self,
        k: Tensor,
        v: Tensor,
        keys: KeptRows,
        values: KeptRows,
        offset: int = 0,
        at: Tensor | None = None,
        count: Tensor | None = None,
    ) -> None:
        """k, v: float32, float16 or bfloat16 [n, G, D], may be views with any row and head strides.

        Row j goes to row offset + at + j of both planes. at: int64 [1] or None for 0. count: int64 of one element; rows
        from it on are left out; None: all are stored. Both are read on the device, and that the rows lie within the
        planes is then the caller's care. A row's bits depend on that row alone. D is a power of two. ValueError if
        shapes do not belong together.
        """


class RotateRows(Protocol):
    """The rotation of kernels/hadamard, or its inverse."""

    def __call__(self, x: Tensor, inverse: bool = False) -> Tensor:
        """x float32 [N, H, D], may be a view with any row and head strides -> float32 [N, H, D], contiguous.

        A head's bits depend on it alone. D is a power of two from 16 on; a ValueError otherwise.
        """


@dataclass(frozen=True)
class RowTable:
    """The buffers of many planes, for one launch over all of them.

    addresses: int64 [buffers, 2], address and bytes of a row. buffers: the tensors, [G, rows, width] each, kept alive.
    """

    addresses: Tensor
    buffers: tuple[Tensor, ...]


class CommitRows(Protocol):
    """Copies accepted rows of a decode pass to their positions, in every buffer of a table."""

    def __call__(self, table: RowTable, path: Tensor, count: Tensor, committed: Tensor, staging: int) -> None:
        """Row staging + path[j] -> row C + j for j < count, byte for byte.

        path: int64 [at least count], node numbers. count: int64 of one element. committed: C, int64 [1]. All are read
        on the device. C + count is at most `staging`.
        """


def row_table(buffers: Sequence[Tensor]) -> RowTable:
    """A table of contiguous buffers [G, rows, width] of any dtypes and widths; ValueError if G or rows differ."""
    for buffer in buffers:
        require(
            buffer.is_contiguous() and buffer.shape[:2] == buffers[0].shape[:2],
            f"buffers of planes {tuple(buffer.shape)} and {tuple(buffers[0].shape)} are not of one table",
        )
    numbers = [[buffer.data_ptr(), buffer.shape[2] * buffer.element_size()] for buffer in buffers]
    return RowTable(torch.tensor(numbers, dtype=torch.int64).to(buffers[0].device), tuple(buffers))


def load_store_rows(device: str) -> StoreRows:
    """The storing of rows for a GPU ("cuda"); a DeviceError says why a device has none."""
    function: StoreRows = load_device_module(__name__, "store_rows", device).store_rows
    return function


def load_rotate_rows(device: str) -> RotateRows:
    """The rotation for a device ("cpu", "cuda")."""
    function: RotateRows = load_form(__name__, "rotate_rows", device)
    return function


def load_commit_rows(device: str) -> CommitRows:
    """The copying of accepted rows for a device ("cpu", "cuda")."""
    function: CommitRows = load_form(__name__, "commit_rows", device)
    return function
