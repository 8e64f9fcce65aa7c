"""How a decode pass cuts positions into chunks (attention/README.md): by the position alone. Torch-free."""

from __future__ import annotations

from draftwood.batch import MAX_ROWS

SMALLEST, PER_DOUBLING, LARGEST = 7, 4, 11
"""Positions of the smallest chunks, chunks of a doubling, and positions of the largest chunks, as powers of two."""

LIMIT = 1 << 24
"""Positions are below this: the kernels find a position's doubling in the exponent of a float32."""


def chunk_of(position: int) -> int:
    """The number of the chunk that holds a position."""
    later = min(max(position.bit_length() - 1 - SMALLEST - PER_DOUBLING, 0), LARGEST - SMALLEST)
    return (later << PER_DOUBLING) + (position >> (SMALLEST + later))


def start_of(chunk: int) -> int:
    """The first position of a chunk."""
    later = min(max((chunk >> PER_DOUBLING) - 1, 0), LARGEST - SMALLEST)
    return (chunk - (later << PER_DOUBLING)) << (SMALLEST + later)


def state_shape(rows: int, heads: int, kv_heads: int, head_dim: int, capacity: int) -> tuple[int, int, int, int]:
    """What `attend_tree` keeps between its launches, float32 [chunks, G, R * H/G, D + 2]; all layers may share it."""
    return chunk_of(capacity + MAX_ROWS - 1) + 1, kv_heads, rows * heads // kv_heads, head_dim + 2
