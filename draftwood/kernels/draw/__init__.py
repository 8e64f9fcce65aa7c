"""Random weights of any block type, made where they are needed: the same bytes on every device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from draftwood.formats.ggml import BlockType
from draftwood.kernels.draw.blocks import BLOCKS, FLOATS, Block, scale_table
from draftwood.kernels.mixing import int32, mix

CHUNK_BLOCKS = {"cpu": 1 << 12, "cuda": 1 << 19}
"""Blocks of 256 weights drawn at a time: few enough for a core's cache, enough to fill a GPU. Multiples of 4."""

_BELL_MEAN, _BELL_SPREAD = 2 * 255, math.sqrt(4 * (256**2 - 1) / 12)
"""Of the sum of a word's four bytes, a whole number whose histogram is nearly a bell."""


def draw(key: int, block_type: BlockType, shape: tuple[int, ...], std: float, device: str, mean: float = 0.0) -> Tensor:
    """Stored weights uint8 [*shape[:-1], row bytes] on the device, of about that mean and standard deviation.

    key: 64 bits; the bytes depend on it and on the arguments before `device` alone. mean: 0 for quantised types.
    ValueError where no half-precision scale gives such a deviation, or for a mean that the type cannot have.
    """
    row_bytes = block_type.row_bytes(shape[-1])
    out = torch.empty(math.prod(shape[:-1]) * row_bytes, dtype=torch.uint8, device=device)
    if out.numel() > 2 << 31:
        raise ValueError(f"{out.numel()} bytes are more than a 32-bit counter can tell apart")
    blocks = out.view(-1, block_type.type_size)
    step = CHUNK_BLOCKS[torch.device(device).type] * 256 // block_type.block_size
    recipe = BLOCKS.get(block_type.name)
    if recipe is None:
        _floats(key, block_type, out.view(FLOATS[block_type.name]), step, std, mean)
    else:
        if mean:
            raise ValueError(f"{block_type.name} weights are drawn around 0, not around {mean}")
        _quantised(key, blocks, step, recipe, std)
    return out.view(*shape[:-1], row_bytes)


def _words(key: int, first: int, count: int, device: torch.device) -> Tensor:
    """Random words number `first` and on: int32 [count]."""
    counter = torch.arange(first, first + count, dtype=torch.int32, device=device)
    return mix(counter.bitwise_xor_(int32(key)), int32(key >> 32))


def _floats(key: int, block_type: BlockType, values: Tensor, step: int, std: float, mean: float) -> None:
    """Fill `values` with mean + std * bell, rounded to float32 after each operation and then to their type."""
    for first in range(0, len(values), step):
        part = values[first : first + step]
        bell = _words(key, first, len(part), values.device).view(torch.uint8).view(-1, 4).sum(1, dtype=torch.int32)
        part.copy_(bell.sub_(_BELL_MEAN).float().mul_(std / _BELL_SPREAD).add_(mean))


def _quantised(key: int, blocks: Tensor, step: int, recipe: Block, std: float) -> None:
    """Fill blocks [B, type size] with random bytes, then set what must be no random bytes."""
    size = blocks.shape[1]
    table = scale_table(recipe, std).to(blocks.device)
    for first in range(0, len(blocks), step):
        part = blocks[first : first + step]
        words = _words(key, first * size // 4, -(-part.numel() // 4), blocks.device)
        part.copy_(words.view(torch.uint8)[: part.numel()].view_as(part))
        if recipe.tie is not None:
            recipe.tie(part)
        fields = part[:, recipe.scale_at : recipe.scale_at + table.shape[1]]
        fields.copy_(table[part[:, recipe.scale_at].int()])
