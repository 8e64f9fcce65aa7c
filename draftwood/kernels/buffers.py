"""What the GPU kernels keep and use: weights in their layouts, and scratch.

`linear.packing` allocates a matrix from the list here; the shapes of scratch are those of `scratch` and `chunks`, which
the kernels allocate by too. Torch-free, and in one file because the kernel packages import torch. Letters as in
`scratch`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from draftwood.buffers import BufferSpec
from draftwood.formats.source import TensorInfo
from draftwood.kernels.chunks import state_shape
from draftwood.kernels.layouts import BLOCK, OUTPUTS, STEP, SUPERBLOCK, Layout, layout_of
from draftwood.kernels.scratch import (
    block_parts,
    block_shapes,
    chunk_shapes,
    expanded_shape,
    granule_shapes,
    parts_of,
    product_programs,
    row_tiles,
    segment_rows,
    slot_shape,
    visit_width,
    whole,
)

ROW_TILE = 16
"""Rows of a row tile of a product; NVIDIA's are half of that, so that a pass may have up to eight rows less there."""

PROCESSORS = 132
"""Multiprocessors of the device that a plan is made for. More of them split products with few outputs into more parts,
and a draft's keys; the widest products, which need the most room, have two parts a tile on any device."""

BLOCK_ROWS, BLOCK_KEYS = 64, 16
"""Query rows and, at least, keys of a program of a draft's attention."""


def packed_buffers(layout: Layout, out_features: int, in_features: int) -> list[BufferSpec]:
    """A matrix as the GPU kernels read it: the tensors of `linear.packing.PackedMatrix` that it has, by their names."""
    outputs, steps = -(-out_features // OUTPUTS) * OUTPUTS, -(-in_features // STEP)
    lanes = (outputs // BLOCK, steps, BLOCK, STEP // BLOCK)
    made = [
        BufferSpec(name, (*lanes, count), "int32", "model")
        for name, count in (("words", layout.words), ("high", layout.high_words))
        if count
    ]
    if layout.compact:
        scales = *lanes[:2], BLOCK * layout.scale_bits // 8
        superscales = lanes[0], steps * STEP // SUPERBLOCK, BLOCK * layout.superscale_bytes // 4
        made.append(BufferSpec("scales", scales, "int32", "model"))
        made.append(BufferSpec("superscales", superscales, "int32", "model"))
    elif layout.scale_bits:
        made.append(BufferSpec("scales", (*lanes, layout.scale_bits // 16), "int16", "model"))
    return [*made, BufferSpec("factor", (outputs,), "float32", "model")]


def matrix_buffers(run: Sequence[TensorInfo], layout: str) -> list[BufferSpec]:
    """Matrices with one input and one block type, which are kept as one, in a layout of WEIGHTS."""
    rows = sum(math.prod(info.shape[:-1]) for info in run)
    return packed_buffers(layout_of(run[0].block_type.name, layout), rows, run[0].shape[-1])


def dense_buffer(info: TensorInfo) -> BufferSpec:
    """A norm or a convolution: float32 in every layout."""
    return BufferSpec(info.name, info.shape, "float32", "model")


def operand(rows: int, inputs: int) -> list[BufferSpec]:
    """Rows of a decode pass as a product takes them."""
    padded = row_tiles(rows, ROW_TILE) * ROW_TILE
    return [
        BufferSpec("operand", (padded, whole(inputs, STEP)), "float16", "pass"),
        BufferSpec("operand factors", (padded,), "float32", "pass"),
    ]


def parts(rows: int, outputs: int, inputs: int) -> BufferSpec:
    """A product of a decode pass before its parts are added, [most, R, N]."""
    tiles, steps = -(-outputs // OUTPUTS), -(-inputs // STEP)
    most = parts_of(tiles, steps, product_programs(tiles, steps, PROCESSORS))
    shape = most, row_tiles(rows, ROW_TILE) * ROW_TILE, tiles * OUTPUTS
    return BufferSpec("parts", shape, "float32", "pass")


def prefill_product(tokens: int, outputs: int, inputs: int) -> list[BufferSpec]:
    """A product of a prefill pass: its rows as halves, the weights that are expanded at a time, the result."""
    padded = whole(inputs, STEP)
    return [
        BufferSpec("operand", (tokens, padded), "float16", "pass"),
        BufferSpec("operand factors", (tokens,), "float32", "pass"),
        BufferSpec("expanded weights", expanded_shape(whole(outputs, OUTPUTS), padded), "float16", "pass"),
        BufferSpec("product", (tokens, outputs), "float32", "pass"),
    ]


def tree_attention(rows: int, heads: int, kv_heads: int, head_dim: int, capacity: int) -> list[BufferSpec]:
    """What a decode pass's attention makes of its queries, and keeps of every chunk of positions; `capacity` is that of
    the cache."""
    states = state_shape(rows, heads, kv_heads, head_dim, capacity)
    return [
        BufferSpec("staged queries", (rows, heads, head_dim), "float16", "pass"),
        BufferSpec("query factors", (rows, heads), "float32", "pass"),
        BufferSpec("attention states", states, "float32", "pass"),
    ]


def granule_attention(
    tokens: int, heads: int, kv_heads: int, head_dim: int, capacity: int, expanded: int
) -> list[BufferSpec]:
    """Scratch and result of a prefill pass's attention, at the end of the context; expanded: of keys and values, how
    many are not kept as halves."""
    segment = segment_rows(capacity, kv_heads, head_dim) if expanded else capacity
    shapes = granule_shapes(tokens, heads, kv_heads, head_dim, capacity, segment, expanded)
    return [
        BufferSpec("staged queries", (tokens, heads, head_dim), "float16", "pass"),
        BufferSpec("attended", (tokens, heads, head_dim), "float32", "pass"),
        *(
            BufferSpec(name, shape, "float16" if name == "room" else "float32", "pass")
            for name, shape in shapes.items()
        ),
    ]


def block_attention(rows: int, heads: int, kv_heads: int, head_dim: int, kept: int) -> list[BufferSpec]:
    """Parts and result of a draft block's attention over a plane of `kept` rows."""
    tall = -(-rows * (heads // kv_heads) // BLOCK_ROWS)
    count = block_parts(-(-kept // BLOCK_KEYS), kv_heads * tall, PROCESSORS)
    scratch = block_shapes(count, rows, heads, head_dim)
    return [
        *(BufferSpec(name, shape, "float32", "pass") for name, shape in scratch.items()),
        BufferSpec("attended", (rows, heads * head_dim), "float32", "pass"),
    ]


def tree_rule(rows: int, key_heads: int, value_heads: int, key_dim: int, value_dim: int) -> list[BufferSpec]:
    """The delta rule of a decode pass: its visits and the result."""
    return [
        BufferSpec("visits", (rows, visit_width(key_heads, value_heads, key_dim, value_dim)), "float32", "pass"),
        BufferSpec("mixed", (rows, value_heads, value_dim), "float32", "pass"),
    ]


def branch_states(rows: int, value_heads: int, key_dim: int, value_dim: int) -> BufferSpec:
    """The delta rule's states at a tree's branches; all layers share it, and it stays from pass to pass."""
    return BufferSpec("branch states", slot_shape(rows, value_heads, key_dim, value_dim), "float32", "model")


def chunk_buffers(tokens: int, key_heads: int, value_heads: int, key_dim: int, value_dim: int) -> list[BufferSpec]:
    """The delta rule of a prefill pass: its workspace and the result."""
    shapes = chunk_shapes(tokens, key_heads, value_heads, key_dim, value_dim)
    return [
        *(BufferSpec(name, shape, "float32", "pass") for name, shape in shapes.items()),
        BufferSpec("mixed", (tokens, value_heads, value_dim), "float32", "pass"),
    ]
