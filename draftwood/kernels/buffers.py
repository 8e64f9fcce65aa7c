"""What the GPU kernels keep and use: weights in their layouts, and scratch.

`linear.packing` allocates a matrix from the list here. The compact layout and all scratch are designs (DESIGN section
5, KERNEL-NOTES) and marked planned. Torch-free, and in one file because the kernel packages import torch. Letters: R
rows of a decode pass, T tokens of a prefill pass, N K out and in features, H heads, D head width, Hv value heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from draftwood.batch import GRANULE
from draftwood.buffers import BufferSpec
from draftwood.formats.source import TensorInfo
from draftwood.kernels.layouts import BLOCK, LAYOUTS, OUTPUTS, STEP, Layout

WEIGHTS = ("fast", "compact")
"""Layouts of all weights. fast: as `linear.packing` keeps them. compact: the same values, in the bits of
the file where those are fewer.
"""

SUM_PROGRAMS, SUM_COLUMNS = 1024, 32
"""Programs of a product that is split along K, at most, and the output columns of each."""

MAX_SPLITS = 32
"""Parts that the keys of a verify attention are split into, so that a few rows fill the device."""

MAX_BRANCHES = 15
"""States of one layer that a depth-first walk over a tree may have to come back to."""


def packed_buffers(layout: Layout, out_features: int, in_features: int) -> list[BufferSpec]:
    """A matrix as the GPU kernels read it: the tensors of `linear.packing.PackedMatrix` that it has, by their names."""
    outputs, steps = -(-out_features // OUTPUTS) * OUTPUTS, -(-in_features // STEP)
    lanes = (outputs // BLOCK, steps, BLOCK, STEP // BLOCK)
    counts = (("words", layout.words, "int32"), ("high", layout.high_words, "int32"))
    made = [
        BufferSpec(name, (*lanes, count), dtype, "model")
        for name, count, dtype in (*counts, ("scales", layout.scale_bytes // 2, "int16"))
        if count
    ]
    return [*made, BufferSpec("factor", (outputs,), "float32", "model")]


def matrix_buffers(run: Sequence[TensorInfo], layout: str) -> list[BufferSpec]:
    """Matrices with one input and one block type, which are kept as one, in a layout of WEIGHTS."""
    kind, packed = run[0].block_type, LAYOUTS[run[0].block_type.name]
    rows = [math.prod(info.shape[:-1]) for info in run]
    if layout == "compact" and 8 * kind.type_size < packed.bits_a_weight * kind.block_size:
        return [
            BufferSpec(info.name, (count, info.nbytes // count), "uint8", "model", planned=True)
            for info, count in zip(run, rows, strict=True)
        ]
    return packed_buffers(packed, sum(rows), run[0].shape[-1])


def dense_buffer(info: TensorInfo) -> BufferSpec:
    """A norm or a convolution: float32 in every layout."""
    return BufferSpec(info.name, info.shape, "float32", "model")


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
