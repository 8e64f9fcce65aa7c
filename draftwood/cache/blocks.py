"""What ggml's block formats share: 32 values of a head are a block with a scale and a code each (SPEC-dflash 4.5).

The fields of a row of n blocks. Put one after the other, those of a block are ggml's bytes.
    scale    float16 [n]
    minimum  float16 [n], of the types with an offset
    fifth    int32 [n], bit j is bit 4 of value j's code
    nibbles  uint8 [16 n], 16 bytes a block: byte j has bits 0-3 of value j in its low half, of value j+16 in its high
"""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.cache.words import pack, unpack

BLOCK = 32


def blocks(rows: Tensor) -> Tensor:
    """[..., D] -> [..., n, 32]."""
    grouped: Tensor = rows.unflatten(-1, (-1, BLOCK))
    return grouped


def inverse(step: Tensor) -> Tensor:
    """1 / step, and 0 for a block without one, whose values are all the same."""
    return torch.where(step == 0, step, 1.0 / step)


def symmetric(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Steps [..., n, 1] and codes [..., n, 32], float32: the value of largest magnitude becomes code 0.

    x: blocks. Of the levels 0 .. 2 * levels - 1 the middle one, `levels`, stands for zero.
    """
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    step = extreme / -levels
    return step, (x * inverse(step) + (levels + 0.5)).trunc().clamp(0, 2 * levels - 1)


def spanning(x: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps and minimums [..., n, 1] and codes [..., n, 32], float32: codes 0 .. top from minimum to maximum.

    x: blocks. Which of two zeros is the smaller one would depend on their order, so there are no negative ones.
    """
    x = x + 0.0
    low = x.amin(-1, keepdim=True)
    step = (x.amax(-1, keepdim=True) - low) / top
    return step, low, ((x - low) * inverse(step) + 0.5).trunc().clamp(0, top)


def pack_nibbles(codes: Tensor) -> Tensor:
    """Bits 0-3 of codes uint8 [..., n, 32] -> nibbles uint8 [..., 16 n]."""
    low, high = codes.chunk(2, -1)
    return (low & 15 | high << 4).flatten(-2)


def unpack_nibbles(nibbles: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`, uint8 [..., n, 32]."""
    pairs = nibbles.unflatten(-1, (-1, BLOCK // 2))
    return torch.cat((pairs & 15, pairs >> 4), -1)


def pack_fifth(codes: Tensor) -> Tensor:
    """Bit 4 of codes uint8 [..., n, 32] -> int32 [..., n]."""
    return pack((codes >> 4).int(), _bits(codes.device)).squeeze(-1)


def unpack_fifth(fifth: Tensor) -> Tensor:
    """The inverse of `pack_fifth`, with 16 for a set bit: uint8 [..., n, 32]."""
    return unpack(fifth.unsqueeze(-1), 1, _bits(fifth.device)).to(torch.uint8) << 4


def _bits(device: torch.device) -> Tensor:
    """Where a word has the fifth bit of each of its values."""
    return torch.arange(BLOCK, dtype=torch.int32, device=device)
