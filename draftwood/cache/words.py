"""Small whole numbers in the fields of machine words.

Field i of a word is its bits i * width and up; field i of word j holds value W * i + j of a row of W words: one field
of all words is a run of W values.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(values: Tensor, width: int, fields: int) -> Tensor:
    """Values int32 [..., D] of `width` bits -> words int32 [..., D / fields]; fields: a power of two."""
    words = values
    while fields > 1:
        fields //= 2
        low, high = words.chunk(2, -1)
        words = low | high << width * fields
    return words


def unpack(words: Tensor, width: int, fields: int) -> Tensor:
    """The inverse of `pack`, int32 [..., D]; words int32, or int16 where 16 bits are in use."""
    shifts = torch.arange(0, width * fields, width, dtype=torch.int32, device=words.device).unsqueeze(-1)
    return (words.int().unsqueeze(-2) >> shifts & (1 << width) - 1).flatten(-2)
