"""Codes for a coordinate of a unit vector: what the KV types tq4_0, tq3_0 and tq2_0 store (FIELD-NOTES 3.7).

A rotated head vector divided by its length is taken for a uniformly random point of the sphere in D dimensions, whose
coordinates have the density (1 - x^2)^((D - 3) / 2). Each becomes the nearest of the 2^bits levels that keep the mean
squared error of that density smallest, and the row keeps its length.

The fields of a row. A code is a sign bit over the number of a magnitude, 0 the smallest.
    norm   float16 [1]
    codes  int32 [D / F], words of F codes: 8 of four bits for tq4_0, 16 of two bits for the others
    signs  int32 [D / 32, rounded up], of tq3_0 only: words of 32 signs
A word has the codes of neighbouring values. Of sixteen, the first eight are its even fields and the others the odd
ones, so that one mask leaves eight in order, four bits apart. tq3_0 keeps the magnitudes as codes and the signs apart:
the sign of field i of word j is bit 4 (i // 2) + i % 2 + 2 (j % 2) of word j // 2, and one mask takes those of eight.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from draftwood.cache.coded import CodedPlane, Fields
from draftwood.cache.words import pack, unpack
from draftwood.kernels.norm.reference import ordered_sum

GRID = 1 << 14
LONGEST = 65504.0
"""The largest float16: no norm is stored as infinity."""

Curve = npt.NDArray[np.float64]


def magnitudes(head_dim: int, bits: int) -> Curve:
    """The 2^(bits - 1) positive levels of the code with the least squared error, float64, ascending.

    Lloyd's iteration: a level is the mean of its cell, a cell ends midway between two levels (S. P. Lloyd, Least
    squares quantization in PCM, 1982). The mass below x is summed on a grid; the first moment has a closed form.
    """
    end = min(1.0, 12 / head_dim**0.5)  # no mass to speak of beyond
    x = np.linspace(0.0, end, GRID + 1)
    density = (1 - x**2) ** ((head_dim - 3) / 2)
    middle = (1 - ((x[1:] + x[:-1]) / 2) ** 2) ** ((head_dim - 3) / 2)
    mass = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1] + 4 * middle))) * (end / GRID / 6)

    def moment(at: Curve) -> Curve:
        below: Curve = -((1 - at**2) ** ((head_dim - 1) / 2)) / (head_dim - 1)
        return below

    levels: Curve = (np.arange(1 << (bits - 1)) + 0.5) * (3 / head_dim**0.5 / (1 << (bits - 1)))
    while True:
        edges = np.concatenate(([0.0], (levels[1:] + levels[:-1]) / 2, [end]))
        better = np.diff(moment(edges)) / np.diff(np.interp(edges, x, mass))
        moved, levels = np.abs(better - levels).max(), better
        if moved < 1e-12:
            return levels


class Codebook:
    """The levels of one code on one device.

    positive: ascending levels above zero; the code has their negatives too.
    """

    def __init__(self, positive: Tensor) -> None:
        self.bits, self.positive = len(positive).bit_length(), positive
        self.levels = torch.cat((positive, -positive))
        self._edges = (positive[1:] + positive[:-1]) / 2

    def nearest(self, unit: Tensor) -> Tensor:
        """The code of the nearest level, int32 of unit's shape; a value midway between two gets the larger one."""
        number: Tensor = torch.bucketize(unit.abs(), self._edges, out_int32=True, right=True)
        negative: Tensor = (unit < 0).int()
        return number + (negative << (self.bits - 1))

    def values(self, codes: Tensor) -> Tensor:
        """The levels of codes int32, float32 of codes' shape."""
        return self.levels.index_select(0, codes.flatten()).view(codes.shape)


@cache
def codebook(head_dim: int, bits: int, device: str) -> Codebook:
    """The codebook for heads of D values."""
    return Codebook(torch.from_numpy(magnitudes(head_dim, bits)).float().to(device))


class SpherePlane(CodedPlane):
    """Rows as a norm and codes of `bits` a value.

    The levels of a row make a vector shorter than the unit vector they stand for. The norm makes up for that, so that a
    row keeps its length. At two bits that costs 2 to 3 % of squared error, but a model that reads the cache ends up
    closer to what it would have said (docs/log.md, KV types).
    """

    bits: ClassVar[int]

    def __init__(self, heads: int, head_dim: int, capacity: int, device: str) -> None:
        super().__init__(heads, head_dim, capacity, device)
        self._book = codebook(head_dim, self.bits, device)
        self._width = self.bits & ~1
        self._code_places, self._sign_places = _code_places(self._width, device), _sign_places(device)

    @classmethod
    def layout(cls, head_dim: int) -> dict[str, tuple[torch.dtype, int]]:
        """See CodedPlane."""
        fields = {"norm": (torch.float16, 1), "codes": (torch.int32, head_dim * (cls.bits & ~1) // 32)}
        return fields | ({"signs": (torch.int32, -(-head_dim // 32))} if cls.bits % 2 else {})

    def encode(self, rows: Tensor) -> Fields:
        """See CodedPlane."""
        length = _length(rows)
        codes = self._book.nearest(rows / length.clamp_min(torch.finfo(torch.float32).tiny))
        norm = length / _length(self._book.values(codes))
        fields = {"norm": norm.clamp_max(LONGEST).half()}
        if self.bits % 2:
            signs = codes >> (self.bits - 1)
            padded = torch.nn.functional.pad(signs, (0, -signs.shape[-1] % 32))
            fields["signs"] = pack(padded, self._sign_places)
        return fields | {"codes": pack(codes & (1 << self._width) - 1, self._code_places)}

    def decode(self, fields: Fields) -> Tensor:
        """See CodedPlane."""
        codes = unpack(fields["codes"], self._width, self._code_places)
        if self.bits % 2:
            signs = unpack(fields["signs"], 1, self._sign_places)[..., : codes.shape[-1]]
            codes += signs << (self.bits - 1)
        return self._book.values(codes) * fields["norm"].float()


def _code_places(width: int, device: str) -> Tensor:
    """Where a word has the code of each of its values, int32 [32 / width]."""
    value = torch.arange(32 // width, dtype=torch.int32, device=device)
    return (value % 8 * (4 // width) + value // 8) * width


def _sign_places(device: str) -> Tensor:
    """Where a word has the sign of each of its 32 values, int32: the even fields of a word of codes, then the odd ones,
    then those of the next word."""
    value = torch.arange(32, dtype=torch.int32, device=device)
    return value % 8 * 4 + value // 8 % 2 + value // 16 * 2


def _length(rows: Tensor) -> Tensor:
    """Lengths [..., 1] of rows [..., D], by a sum whose order the other rows cannot change, rounded to nearest.

    torch's own float32 root on a CPU is off by a last place now and then; a GPU's is not.
    """
    return ordered_sum(rows.square()).double().sqrt().float()
