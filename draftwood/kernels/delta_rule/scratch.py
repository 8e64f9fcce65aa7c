"""Shapes of what the GPU form writes besides its results. Torch-free.

Letters: R rows of a decode pass, T tokens of a prefill pass, Hk key heads, Hv value heads, K key width, V value width.
"""

from __future__ import annotations

from draftwood.batch import GRANULE

PLAN_WIDTH = 8
"""int32 of a line of a plan, [R, PLAN_WIDTH]."""


def branch_slots(rows: int) -> int:
    """States that a depth-first walk over a tree of `rows` nodes may have to come back to at a time, at least 1.

    Each has a child that is still to come, another that is being visited or one of the states, and none shares them.
    """
    return max(1, (rows - 1) // 2)


def slot_shape(rows: int, value_heads: int, key_dim: int, value_dim: int) -> tuple[int, int, int, int]:
    """float32 scratch for these states; all layers share it."""
    return branch_slots(rows), value_heads, key_dim, value_dim


def visit_width(key_heads: int, value_heads: int, key_dim: int, value_dim: int) -> int:
    """float32 of a visit, [R, width]: q, k and v after convolution and norms, k^T q a key head, decay and beta."""
    return 2 * key_heads * key_dim + value_heads * value_dim + key_heads + 2 * value_heads


def chunk_shapes(
    tokens: int, key_heads: int, value_heads: int, key_dim: int, value_dim: int
) -> dict[str, tuple[int, ...]]:
    """float32 workspace of a prefill pass, T a multiple of GRANULE."""
    granules = tokens // GRANULE
    return {
        "q": (tokens, key_heads, key_dim),
        "k": (tokens, key_heads, key_dim),
        "v": (tokens, value_heads, value_dim),
        "u": (tokens, value_heads, value_dim),
        "w": (tokens, value_heads, key_dim),
        "scores": (granules, value_heads, GRANULE, GRANULE),
        "total": (granules, value_heads, GRANULE),
    }
