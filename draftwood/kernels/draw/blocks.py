"""What random bytes need to become sound blocks of each quantised type (README.md beside this file)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from draftwood.kernels.dequant.reference import NL4


@dataclass(frozen=True)
class Block:
    """A quantised type whose codes and sub-block scales may be any bytes.

    spread: standard deviation of its weights where the block's scale d is 1. scale_at: byte of d, a half. offset: the
    second half, right after d, is this many times d (None: the type has none). signed: d may be negative, which
    evens out codes that reach further down than up. tie: sets what must follow from other bytes, in blocks uint8
    [B, type size].
    """

    spread: float
    scale_at: int = 0
    offset: float | None = None
    signed: bool = False
    tie: Callable[[Tensor], None] | None = None


def _rms(values: Iterable[float]) -> float:
    squares = [value * value for value in values]
    return math.sqrt(sum(squares) / len(squares))


def _codes(count: int, middle: float) -> float:
    """RMS of the codes 0 .. count - 1 around `middle`, all equally likely."""
    return _rms(code - middle for code in range(count))


def _tie_nibbles(blocks: Tensor) -> None:
    """Q2_K: a sub-block's minimum (high nibble) is its scale (low nibble), or differs from it in the lowest bit."""
    scales = blocks[:, :16]
    low = scales & 15
    scales.copy_(low | ((low ^ ((scales >> 4) & 1)) << 4))


def _tie_sixes(blocks: Tensor) -> None:
    """Q4_K and Q5_K: a sub-block's six-bit minimum is its scale, or differs from it in the lowest bit."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    second.copy_(first ^ (second & 1))
    low = third & 15
    third.copy_(low | ((low ^ ((third >> 4) & 1)) << 4))


BLOCKS: dict[str, Block] = {
    "Q4_0": Block(_codes(16, 8), signed=True),
    "Q4_1": Block(_codes(16, 7.5), offset=-7.5),
    "Q5_0": Block(_codes(32, 16), signed=True),
    "Q5_1": Block(_codes(32, 15.5), offset=-15.5),
    "Q8_0": Block(_codes(256, 128)),
    "IQ4_NL": Block(_rms(NL4), signed=True),
    "Q2_K": Block(_codes(16, 0) * _codes(4, 1.5), scale_at=80, offset=1.5, tie=_tie_nibbles),
    "Q3_K": Block(_codes(64, 32) * _codes(8, 4), scale_at=108),
    "Q4_K": Block(_codes(64, 0) * _codes(16, 7.5), offset=7.5, tie=_tie_sixes),
    "Q5_K": Block(_codes(64, 0) * _codes(32, 15.5), offset=15.5, tie=_tie_sixes),
    "Q6_K": Block(_codes(256, 128) * _codes(64, 32), scale_at=208),
    "IQ4_XS": Block(_codes(64, 32) * _rms(NL4)),
}
"""By block type name."""

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types whose weights are drawn one by one."""

_VARIATION = np.arange(192, 320) / 256
"""Scales of a tensor's blocks relative to each other; their squares add up without rounding."""


def scale_table(block: Block, std: float) -> Tensor:
    """The bytes of d, and of what follows it, for every value of a random byte: uint8 [256, 2 or 4].

    ValueError where `std` cannot be reached with finite halves other than 0.
    """
    sizes = std / block.spread / math.sqrt(np.mean(_VARIATION**2)) * _VARIATION
    with np.errstate(over="ignore"):
        scales = np.concatenate((-sizes if block.signed else sizes, sizes)).astype(np.float16)
        columns = [scales]
        if block.offset is not None:
            columns.append((block.offset * scales.astype(np.float64)).astype(np.float16))
    table = np.stack(columns, 1)
    if not np.isfinite(table).all() or not table.all():
        raise ValueError(f"no half-precision scales give weights a standard deviation of {std:g}")
    return torch.from_numpy(table.view(np.uint8))
