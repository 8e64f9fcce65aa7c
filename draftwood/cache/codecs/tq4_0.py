"""KV type tq4_0 on a GPU: fields norm and codes (cache/sphere.py has the format)."""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl

from draftwood.cache.codecs.sphere import load_coordinates, store_coordinates, tables
from draftwood.kernels.codec import Codec


@triton.jit
def _load(tensors, base, b_rows, m_rows, start, WIDTH: tl.constexpr, D: tl.constexpr):
    fields = tensors[0], tensors[1], None, tensors[2]
    return load_coordinates(fields, base, b_rows, m_rows, start, WIDTH, D, 4)


@triton.jit
def _store(tensors, row, b_x, D: tl.constexpr):
    fields = tensors[0], tensors[1], None, tensors[2]
    store_coordinates(fields, row, b_x, D, 4)


CODEC = Codec(_load, _store, rotated=True, tables=partial(tables, 4))
