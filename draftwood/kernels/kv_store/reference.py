"""Rotation and commit of rows in plain torch."""

from __future__ import annotations

from torch import Tensor

from draftwood.kernels.hadamard import rotate, rotation
from draftwood.kernels.kv_store import RowTable


def rotate_rows(x: Tensor, inverse: bool = False) -> Tensor:
    """See `draftwood.kernels.kv_store.RotateRows`."""
    return rotate(x.contiguous(), rotation(x.shape[-1], str(x.device))[inverse])


def commit_rows(table: RowTable, path: Tensor, count: Tensor, committed: Tensor, staging: int) -> None:
    """See `draftwood.kernels.kv_store.CommitRows`."""
    kept, first = int(count), int(committed)
    for buffer in table.buffers:
        buffer[:, first : first + kept] = buffer[:, staging + path[:kept]]
