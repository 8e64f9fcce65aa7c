"""Who sees whom while many blocks of a row are replayed at once (SPEC-draft-training section 6).

Keys of a row are its S context tokens, then the A * B block rows. Two realisations of the same rule: a dense boolean
mask for `scaled_dot_product_attention` (any device, the oracle), and tiles for FlexAttention, which skips what nobody
sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

TILE = 128
"""Queries and keys of a FlexAttention tile; S and A * B are multiples of it."""


@dataclass(frozen=True)
class BlockRule:
    """What a block row sees besides its context.

    block: rows of a block. causal: no row sees the rows after it. window: a row sees the context less than this far
    back, None for all of it. leak: the context reaches up to the anchor itself, which is known only while training;
    for the control that shows what such a mistake would look like.
    """

    block: int
    causal: bool = True
    window: int | None = None
    leak: bool = False


@dataclass(frozen=True)
class Realisation:
    """One way to compute masked attention.

    blocks(at, start, S, rule) and documents(start) make its masks. attend(q, k, v, mask): queries [n, H, Q, D], keys
    and values [n, G, K, D] -> [n, H, Q, D].
    """

    blocks: Callable[[Tensor, Tensor, int, BlockRule], Any]
    documents: Callable[[Tensor], Any]
    attend: Callable[[Tensor, Tensor, Tensor, Any], Tensor]


def context_bounds(at: Tensor, start: Tensor, rule: BlockRule) -> tuple[Tensor, Tensor]:
    """First context token that each block row sees and the one after the last: two int64 [n, A * B].

    at, start: int64 [n, A], see `packing.Anchors`.
    """
    stop = at + 1 if rule.leak else at
    rows = at.unsqueeze(-1) + torch.arange(rule.block, device=at.device)
    low = start.unsqueeze(-1).expand_as(rows)
    if rule.window is not None:
        low = torch.maximum(low, rows - rule.window + 1)
    return low.flatten(1), stop.unsqueeze(-1).expand_as(rows).flatten(1)


def dense_blocks(at: Tensor, start: Tensor, length: int, rule: BlockRule) -> Tensor:
    """bool [n, 1, A * B, S + A * B]: True where a query sees a key."""
    low, high = context_bounds(at, start, rule)
    keys = torch.arange(length, device=at.device)
    context = (keys >= low.unsqueeze(-1)) & (keys < high.unsqueeze(-1))
    rows = torch.arange(low.shape[1], device=at.device)
    same = rows.unsqueeze(-1) // rule.block == rows // rule.block
    if rule.causal:
        same = same & (rows <= rows.unsqueeze(-1))
    return torch.cat((context, same.expand(len(at), -1, -1)), -1).unsqueeze(1)


def dense_documents(start: Tensor) -> Tensor:
    """bool [n, 1, S, S] of causal attention inside documents; start: int64 [n, S]."""
    keys = torch.arange(start.shape[1], device=start.device)
    return ((keys >= start.unsqueeze(-1)) & (keys <= keys.unsqueeze(-1))).unsqueeze(1)


def attend_dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention through a dense mask."""
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def attend_tiles(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Attention through FlexAttention; fast only inside a compiled function."""
    mixed: Tensor = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    return mixed


def tiled_blocks(at: Tensor, start: Tensor, length: int, rule: BlockRule) -> BlockMask:
    """The rule of `dense_blocks` for FlexAttention."""
    low, high = context_bounds(at, start, rule)
    some, whole = _interval_tiles(low, high, length)
    # The block part: a tile of queries sees the tile of its own rows, in part.
    own = torch.eye(some.shape[1], dtype=torch.bool, device=at.device).expand(len(at), -1, -1)
    some, whole = torch.cat((some, own), -1), torch.cat((whole, torch.zeros_like(own)), -1)
    block, causal = rule.block, rule.causal

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        context = (key >= low[batch, query]) & (key < high[batch, query]) & (key < length)
        row = key - length
        mine = (key >= length) & (row // block == query // block)
        return context | (mine & (row <= query) if causal else mine)

    return _tiles(some, whole, sees, (low.shape[1], length + low.shape[1]))


def tiled_documents(start: Tensor) -> BlockMask:
    """The rule of `dense_documents` for FlexAttention."""
    length = start.shape[1]
    high = torch.arange(1, length + 1, device=start.device).expand_as(start)
    some, whole = _interval_tiles(start, high, length)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= start[batch, query]) & (key <= query)

    return _tiles(some, whole, sees, (length, length))


def _interval_tiles(low: Tensor, high: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Tiles [n, Q / TILE, keys / TILE] that hold some visible key, and those that every query sees whole.

    low, high: int64 [n, Q], the interval of keys that a query sees.
    """
    lows, highs = low.unflatten(1, (-1, TILE)), high.unflatten(1, (-1, TILE))
    first = torch.arange(0, keys, TILE, device=low.device)
    some = (first < highs.amax(-1, keepdim=True)) & (first + TILE > lows.amin(-1, keepdim=True))
    whole = (first >= lows.amax(-1, keepdim=True)) & (first + TILE <= highs.amin(-1, keepdim=True))
    return some & ~whole, whole


def _tiles(
    some: Tensor, whole: Tensor, sees: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], lengths: tuple[int, int]
) -> BlockMask:
    def listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
        tiles = tiles.unsqueeze(1)
        order = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return tiles.sum(-1, dtype=torch.int32), order.to(torch.int32)

    return BlockMask.from_kv_blocks(*listed(some), *listed(whole), TILE, sees, lengths)


DENSE = Realisation(dense_blocks, dense_documents, attend_dense)
TILED = Realisation(tiled_blocks, tiled_documents, attend_tiles)


def realisation_for(device: str) -> Realisation:
    """Tiles on a GPU; a CPU has no gradient for them."""
    return TILED if device == "cuda" else DENSE
