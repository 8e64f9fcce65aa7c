# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Chunks of a row's positions (kernels/chunks.py), as kernels reckon them."""

from __future__ import annotations

import triton
import triton.language as tl

from draftwood.kernels.chunks import LARGEST, PER_DOUBLING, SMALLEST


@triton.jit
def chunk_of(position, FIRST: tl.constexpr = SMALLEST, PER: tl.constexpr = PER_DOUBLING,
             MOST: tl.constexpr = LARGEST - SMALLEST):  # fmt: skip
    """As `chunks.chunk_of`."""
    doubling = (position.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    later = tl.minimum(tl.maximum(doubling - (FIRST + PER), 0), MOST)
    return (later << PER) + (position >> (FIRST + later))


@triton.jit
def start_of(chunk, FIRST: tl.constexpr = SMALLEST, PER: tl.constexpr = PER_DOUBLING,
             MOST: tl.constexpr = LARGEST - SMALLEST):  # fmt: skip
    """As `chunks.start_of`."""
    later = tl.minimum(tl.maximum((chunk >> PER) - 1, 0), MOST)
    return (chunk - (later << PER)) << (FIRST + later)
