"""Small whole numbers in the fields of machine words of 32 bits, a word those of neighbouring values."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(values: Tensor, places: Tensor) -> Tensor:
    """Values int32 [..., D] -> words int32 [..., D / n]; places: int32 [n], the lowest bit of each value of a word."""
    words: Tensor = (values.unflatten(-1, (-1, len(places))) << places).sum(-1, dtype=torch.int32)
    return words


def unpack(words: Tensor, width: int, places: Tensor) -> Tensor:
    """The inverse of `pack`, values of `width` bits, int32 [..., D]; words int32, or int16 where 16 bits are in use."""
    return (words.unsqueeze(-1) >> places & (1 << width) - 1).flatten(-2)
