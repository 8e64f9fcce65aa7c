"""What the GPU kernels keep and use: weight layouts and scratch, as designed (DESIGN section 5, KERNEL-NOTES).

None of these kernels is written yet, so every buffer is marked planned. Torch-free, and in one file because the
kernel packages import torch. Letters: R rows of a decode pass, T tokens of a prefill pass, N K out and in features,
H heads, D head width, Hv value heads.
"""

from __future__ import annotations

import math

from draftwood.batch import GRANULE
from draftwood.buffers import BufferSpec
from draftwood.formats.source import TensorInfo

FAST_BITS = {"Q4_K": 5.0, "Q5_K": 6.0, "Q6_K": 7.0}
"""Bits of a weight whose scales are multiplied out at load; other block types are the same in both layouts."""

LAYOUTS = ("fast", "compact")
"""fast: scales multiplied out, FAST_BITS a weight. compact: the bits of the file, with the same values."""

SUM_PROGRAMS, SUM_COLUMNS = 1024, 32
"""Programs of a product that is split along K, at most, and the output columns of each."""

MAX_SPLITS = 32
"""Parts that the keys of a verify attention are split into, so that a few rows fill the device."""

MAX_BRANCHES = 15
"""States of one layer that a depth-first walk over a tree may have to come back to."""


def weight_buffer(info: TensorInfo, layout: str) -> BufferSpec:
    """One tensor of a file in a layout of LAYOUTS. Vectors are float32; matrices keep their rows [N, bytes]."""
    if len(info.shape) == 1:
        return BufferSpec(info.name, info.shape, "float32", "model", planned=True)
    bits = FAST_BITS.get(info.block_type.name) if layout == "fast" else None
    rows = math.prod(info.shape[:-1])
    row_bytes = info.nbytes // rows if bits is None else int(info.shape[-1] * bits / 8)
    return BufferSpec(info.name, (rows, row_bytes), "uint8", "model", planned=True)


def partial_sums(rows: int) -> BufferSpec:
    """Parts of a product that is split along K: two tiles [R, SUM_COLUMNS] a program, added in order."""
    return BufferSpec("partial sums", (SUM_PROGRAMS, 2, rows, SUM_COLUMNS), "float32", "pass", planned=True)


def attention_parts(rows: int, heads: int, head_dim: int) -> BufferSpec:
    """Output, maximum and sum of every part of the keys, [splits, R, H, D + 2]; all layers share it."""
    return BufferSpec("attention parts", (MAX_SPLITS, rows, heads, head_dim + 2), "float32", "pass", planned=True)


def branch_states(value_heads: int, key_dim: int, value_dim: int) -> BufferSpec:
    """The delta rule's states at a tree's branches, [15, Hv, K, V]; all layers share it."""
    shape = (MAX_BRANCHES, value_heads, key_dim, value_dim)
    return BufferSpec("branch states", shape, "float32", "pass", planned=True)


def chunk_buffers(tokens: int, value_heads: int, key_dim: int, value_dim: int) -> list[BufferSpec]:
    """The delta rule's chunk form: u [T, Hv, V], w [T, Hv, K] and two matrices for each granule and head."""
    square = (tokens // GRANULE, value_heads, GRANULE, GRANULE)
    return [
        BufferSpec("u", (tokens, value_heads, value_dim), "float32", "pass", planned=True),
        BufferSpec("w", (tokens, value_heads, key_dim), "float32", "pass", planned=True),
        BufferSpec("interaction", square, "float32", "pass", planned=True),
        BufferSpec("scores", square, "float32", "pass", planned=True),
    ]
