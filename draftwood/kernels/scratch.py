"""Shapes of what GPU kernels write besides their results. Torch-free.

Here and not beside the kernels, because their packages import torch and a plan is made without it. Letters: R rows of a
decode pass, B of a draft's block, T tokens of a prefill pass, N outputs, K inputs, H query heads, G KV heads, D head
width; of the delta rule Hk key heads, Hv value heads, K key width, V value width.
"""

from __future__ import annotations

from functools import cache

from draftwood.batch import GRANULE
from draftwood.kernels.layouts import OUTPUTS

TILES = (1, 2, 3, 4, 6, 8)
"""Row tiles that a pass can have; the product's kernel is compiled once for each, and a layout."""

EXPANDED = 1 << 25
"""Weights of a matrix that prefill has as halves at a time (64 MiB)."""

SEGMENT_BYTES = 64 << 20
"""Of keys and values that a prefill pass has as halves at a time, where the cache keeps something else."""

MANY_TILES = 6
"""Tiles of outputs a multiprocessor from which on three programs share it."""

BLOCK_PROGRAMS = 2
"""Programs of a multiprocessor that the keys of a draft's block are split for."""


def whole(count: int, step: int) -> int:
    """A count rounded up to whole steps."""
    return count + -count % step


def row_tiles(rows: int, tile: int) -> int:
    """Row tiles of a pass of 1 to 64 rows, `tile` rows each."""
    return next(tiles for tiles in TILES if tiles * tile >= rows)


def product_programs(tiles: int, steps: int, processors: int) -> int:
    """Programs that a product is split over: tiles of outputs, `steps` of inputs each, on a device of `processors`.

    Two a multiprocessor, but at least four steps each: at 64 rows registers allow no third, which would come last and
    alone, and at 16 rows it gains 2 %. Three where tiles are so many that this end is short: a head, 4 % at 16 rows.
    """
    return max(1, min((3 if tiles > MANY_TILES * processors else 2) * processors, tiles * steps // 4))


@cache
def parts_of(tiles: int, steps: int, programs: int) -> int:
    """The most parts that a tile of outputs can have; steps: of a tile."""
    total = tiles * steps
    return max(
        ((tile + 1) * steps * programs - 1) // total - ((tile * steps + 1) * programs - 1) // total + 1
        for tile in range(tiles)
    )


def expanded_tiles(inputs: int) -> int:
    """Tiles of outputs that prefill expands at a time."""
    return max(1, EXPANDED // (OUTPUTS * inputs))


def expanded_shape(outputs: int, inputs: int) -> tuple[int, int]:
    """float16 weights of these tiles, N and K padded."""
    return min(expanded_tiles(inputs), outputs // OUTPUTS) * OUTPUTS, inputs


def segment_rows(end: int, groups: int, width: int, nbytes: int = SEGMENT_BYTES) -> int:
    """Rows of keys and values that prefill attention expands at a time, of `end`."""
    return min(end, nbytes // (4 * groups * width) // 128 * 128)


def granule_shapes(
    tokens: int, heads: int, groups: int, width: int, end: int, segment: int, expanded: int
) -> dict[str, tuple[int, ...]]:
    """Of prefill attention over `end` rows in segments: `expanded` of keys and values as halves, float16; what is
    carried from segment to segment, float32, where there are several."""
    kept = tokens * heads if segment < end else 1
    return {"room": (expanded, groups, segment, width), "peak and total": (2, kept), "mixed": (kept, width)}


def block_parts(steps: int, programs: int, processors: int) -> int:
    """Parts for up to `steps` steps of keys where a part is that many programs; enough to fill the device."""
    return max(1, min(steps, BLOCK_PROGRAMS * processors // programs))


def block_shapes(parts: int, rows: int, heads: int, width: int) -> dict[str, tuple[int, ...]]:
    """float32 of a block's attention: of each part of the keys what came of it, and exponents and sums."""
    return {"mixed": (parts, rows, heads, width), "peak and total": (2, parts, rows, heads)}


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
