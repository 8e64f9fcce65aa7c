"""How kernels reach the kept rows of a KV type without knowing the type: its own functions and its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

POINTERS = 4
"""Tensors of one plane that a kernel takes, at most: the fields of a row and the tables of its code."""


def no_tables(head_dim: int, device: str) -> tuple[Tensor, ...]:
    """What most codes need."""
    return ()


@dataclass(frozen=True)
class Codec:
    """Triton functions of one KV type, for rows in the space in which they are kept.

    Letters: n rows, D values of a head. `tensors` is a tuple of pointers: the fields in their order, then the tables.
    A field of width w has row r at element r * w.

    load(tensors, base, b_rows, m_rows, start, WIDTH, D) -> fp16 [n, WIDTH], values start .. start+WIDTH-1 of the rows
        base + b_rows (an int64 and an int32 block), zeros where not m_rows; WIDTH is D or a smaller power of two, 64 at
        least, start a multiple of it. A row's values are rounded to fp16 once, at the end (cache/codecs/README.md).
        Hopper's attention runs the same function in Gluon: then fields are tiles of shared memory with all n rows,
        tables tuples of numbers, WIDTH is D, and b_rows and m_rows are None. `load_words`, `rows_of` and their like in
        cache/codecs/words.py do both; `tl.arange` and `tl.full` do not run there.
    store(tensors, row, b_x, D) encodes one row, float32 [D], as row number `row` (int64).
    rotated: rows are kept rotated (kernels/hadamard). tables(head_dim, device): what the functions look up.
    """

    load: Any
    store: Any
    rotated: bool = False
    tables: Callable[[int, str], tuple[Tensor, ...]] = no_tables


@dataclass(frozen=True)
class KeptRows:
    """A plane as kernels take it.

    fields: [G, rows, width] each, contiguous, from 16 bytes on. tables: those of the codec.
    """

    fields: tuple[Tensor, ...]
    codec: Codec
    tables: tuple[Tensor, ...] = ()

    @property
    def heads(self) -> int:
        """G."""
        return self.fields[0].shape[0]

    @property
    def rows(self) -> int:
        """Rows of every head."""
        return self.fields[0].shape[1]

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        """POINTERS arguments of a kernel."""
        tensors = self.fields + self.tables
        return tensors + (None,) * (POINTERS - len(tensors))

    @property
    def halves(self) -> Tensor | None:
        """The rows themselves, [G, rows, D], where they are kept as float16."""
        return self.fields[0] if len(self.fields) == 1 and self.fields[0].dtype == torch.float16 else None


def exchanged(row: int) -> tuple[int, int]:
    """How rows of so many bytes lie in a tile: so many of them after each other have their 16-byte pieces in one order,
    and there are so many orders. So one piece each of eight neighbouring rows are 128 bytes in 32 banks."""
    return max(128 // row, 1), max(min(row // 16, 8), 1)


def tile_layout(dtype: Any, width: int) -> Any:
    """Gluon's layout of a tile [n, width] of a field in shared memory, where attention on Hopper puts it."""
    from triton.experimental.gluon import language as gl

    size = dtype.primitive_bitwidth // 8
    return gl.SwizzledSharedLayout(min(16 // size, width), *exchanged(width * size), [1, 0])
