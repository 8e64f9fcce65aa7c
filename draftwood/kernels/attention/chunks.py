"""How a decode pass cuts positions into chunks (README.md): by the position alone, 16 chunks a doubling."""

from __future__ import annotations

from draftwood.batch import MAX_ROWS

LIMIT = 1 << 24
"""Positions are below this: the kernels find a position's doubling in the exponent of a float32."""


def chunk_of(position: int) -> int:
    """The number of the chunk that holds a position."""
    doubling = max(position.bit_length() - 1, 11)
    return 16 * (doubling - 11) + (position >> (doubling - 4))


def start_of(chunk: int) -> int:
    """The first position of a chunk."""
    doubling = 11 + max(chunk - 16, 0) // 16
    return (chunk - 16 * (doubling - 11)) << (doubling - 4)


def state_shape(rows: int, heads: int, kv_heads: int, head_dim: int, capacity: int) -> tuple[int, int, int, int]:
    """What `attend_tree` keeps between its launches, float32 [chunks, G, R * H/G, D + 2]; all layers may share it."""
    return chunk_of(capacity + MAX_ROWS - 1) + 1, kv_heads, rows * heads // kv_heads, head_dim + 2
