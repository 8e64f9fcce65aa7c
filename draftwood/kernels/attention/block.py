"""Attention of a draft's block: rows at consecutive positions over a context and over the block itself.

Letters: B rows of the block, L keys read, H query heads, G KV heads, D head dim, W window. The rows of a
block see each other, so a row's result may depend on the others: this is for drafts only, DESIGN law 1 does
not ask it of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor


def first_visible(committed: int, window: int | None) -> int:
    """The earliest position that any row of a block at `committed` sees."""
    return 0 if window is None else max(0, committed + 1 - window)


def block_mask(rows: int, committed: int, window: int | None, causal: bool, device: str) -> Tensor | None:
    """What to add to the scores: 0 where a key is visible, -inf where not; None where every key is.

    Row j is at position p_q = committed + j. A key at p_k is visible iff p_q - p_k < W, and, after the row,
    iff not `causal` and p_k - p_q < W (SPEC-draft-formats 2.4: the window moves with the row). Returns
    float32 [B, L] for the keys at positions first_visible .. committed + rows - 1.
    """
    start = first_visible(committed, window)
    if not causal and (window is None or window >= committed + rows):
        return None
    ahead = torch.arange(start - committed, rows, device=device) - torch.arange(rows, device=device).unsqueeze(1)
    hidden = ahead > 0 if causal else ahead >= (window or rows)
    if window is not None:
        hidden |= ahead <= -window
    return torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)


def grouped_mask(mask: Tensor | None, heads: int, groups: int) -> Tensor | None:
    """A mask [B, L] as `attend_block` takes it, [H/G * B, L]: once for each of the heads that share keys."""
    return None if mask is None else mask.repeat(heads // groups, 1)


def attend_block(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """All rows of a block at once.

    query: float32 [B, H, D], H a multiple of G. keys, values: float32 [G, L, D]. mask: of `grouped_mask`. Returns
    float32 [B, H * D].
    """
    rows, _, width = query.shape
    groups = keys.shape[0]
    # The heads that share keys become further rows of one product, so the keys are read once.
    grouped = query.view(rows, groups, -1, width).permute(1, 2, 0, 3).reshape(1, groups, -1, width)
    out = functional.scaled_dot_product_attention(
        grouped, keys.unsqueeze(0), values.unsqueeze(0), attn_mask=mask, scale=scale
    )
    return out.view(groups, -1, rows, width).permute(2, 0, 1, 3).reshape(rows, -1)
