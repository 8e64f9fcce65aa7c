"""A fixed orthogonal rotation of head vectors: random signs, then a Hadamard transform of every piece.

Letters: N rows of a pass, H heads, D head width, P width of a piece.
"""

from __future__ import annotations

import hashlib
from functools import cache

import torch
from torch import Tensor

from draftwood.batch import GRANULE
from draftwood.kernels._rows import padded
from draftwood.kernels.linear.base import row_multiple

SMALLEST_PIECE = 16


def piece_width(head_dim: int) -> int:
    """P: the largest power of two that divides D; a ValueError below 16, where a transform spreads too little."""
    width = head_dim & -head_dim
    if width < SMALLEST_PIECE:
        raise ValueError(f"a head of {head_dim} values has no pieces of {SMALLEST_PIECE} or more")
    return width


def hadamard(width: int) -> Tensor:
    """The orthonormal Hadamard matrix in Sylvester's order, float32 [P, P]: (-1)^popcount(i & j) / sqrt(P)."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    scaled: Tensor = matrix / width**0.5
    return scaled.float()


def signs(head_dim: int) -> Tensor:
    """+1 or -1 for each of D values, float32 [D]: the bits of a hash, the same on every machine."""
    bits = int.from_bytes(hashlib.shake_128(b"draftwood").digest(-(-head_dim // 8)), "little")
    return torch.tensor([1.0 - 2.0 * (bits >> i & 1) for i in range(head_dim)])


@cache
def rotation(head_dim: int, device: str) -> tuple[Tensor, Tensor]:
    """The matrices float32 [D, D] of the rotation and of its inverse, for `rotate`."""
    transform = hadamard(piece_width(head_dim))
    pieces = torch.block_diag(*[transform] * (head_dim // len(transform)))
    there = (signs(head_dim).unsqueeze(1) * pieces).to(device)
    return there, there.t().contiguous()


def rotate(x: Tensor, matrix: Tensor) -> Tensor:
    """Every head vector times one of the matrices of `rotation`.

    x: float32 [N, H, D] or [N, H * D]; returns the same shape. A row's bits do not depend on N or on the other rows:
    products are padded as those of the float forms are, and made for a granule at a time.
    """
    width, multiple = len(matrix), row_multiple(x.device.type)
    parts = [
        (padded(rows.flatten(1), multiple).reshape(-1, width) @ matrix)[: rows.numel() // width]
        for rows in x.split(GRANULE)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x.shape)
