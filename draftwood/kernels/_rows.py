"""Rows as kernels take them: where a row lies must not change how its kernel is compiled, nor how many rows there are
which kernel a library picks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ALIGNMENT = 16
"""Bytes. Triton compiles anew for arguments that begin elsewhere, and may then add up a row in another order."""


def is_aligned(x: Tensor) -> bool:
    """Whether `x` begins on a multiple of ALIGNMENT and its last axis is contiguous."""
    return x.data_ptr() % ALIGNMENT == 0 and (x.stride(-1) == 1 or x.shape[-1] == 1)


def aligned(x: Tensor) -> Tensor:
    """`x` itself, or a contiguous copy of it that begins on a multiple of ALIGNMENT."""
    return x if is_aligned(x) else x.clone(memory_format=torch.contiguous_format)


def row_stride(x: Tensor) -> int:
    """Elements from row to row. A single row's own stride may be anything, and must not choose another code."""
    return x.stride(0) if len(x) > 1 else x[0].numel() if len(x) else 0


def padded(x: Tensor, multiple: int) -> Tensor:
    """x [R, K] with zero rows added up to a multiple."""
    missing = -x.shape[0] % multiple
    return functional.pad(x, (0, 0, 0, missing)) if missing else x


def require(condition: bool, what: str) -> None:
    """ValueError for arguments that would make a kernel read or write outside its tensors."""
    if not condition:
        raise ValueError(what)
