"""Grouped-query softmax attention: one call per row in a decode pass, one per granule in prefill.

A decode row's arithmetic must not depend on the other rows (DESIGN law 1). Here that holds by construction: a row is
attended by a call of its own, over the keys at logical positions 0 .. p laid out in that order, so plain decoding
makes exactly the call that a tree's node makes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from draftwood.batch import GRANULE


def attend_row(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """One row: query [H, D], keys and values [G, L, D] (all of them visible), H a multiple of G -> [H, D]."""
    groups = keys.shape[0]
    q = query.unflatten(0, (groups, -1)).unsqueeze(0)
    out = functional.scaled_dot_product_attention(q, keys.unsqueeze(0), values.unsqueeze(0), scale=scale)
    return out.squeeze(0).flatten(0, 1)


def attend_nodes(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    staged: tuple[Tensor, Tensor] | None,
    committed: int,
    order: list[int],
    depth: list[int],
    scale: float,
) -> Tensor:
    """All nodes of a decode pass, each over its own root-to-node path.

    query: [R, H, D]. keys, values: [G, C + deepest + 1, D], logical positions; rows from C on are scratch.
    staged: the nodes' rows in node order, [G, R, D] each, or None when the nodes are a chain that already lies at
    C .. C+R-1. order: the nodes depth-first (a parent, then its whole subtree). Laying a node's row at C + depth
    before its subtree is visited keeps rows C .. C+depth equal to its path, whatever the tree's shape.
    Returns [R, H, D].
    """
    out = torch.empty_like(query)
    for node in order:
        end = committed + depth[node] + 1
        if staged is not None:
            keys[:, end - 1] = staged[0][:, node]
            values[:, end - 1] = staged[1][:, node]
        out[node] = attend_row(query[node], keys[:, :end], values[:, :end], scale)
    return out


def attend_granules(query: Tensor, keys: Tensor, values: Tensor, start: int, scale: float) -> Tensor:
    """Causal attention of a prefill pass, granule by granule.

    query: [T, H, D] at positions start .. start+T-1, both multiples of GRANULE; keys, values: [G, start+T, D].
    Returns [T, H, D].
    """
    rows, heads, _ = query.shape
    groups = keys.shape[0]
    hidden = torch.full((GRANULE, GRANULE), -torch.inf, device=query.device, dtype=query.dtype).triu_(1)
    out = torch.empty_like(query)
    for first in range(0, rows, GRANULE):
        end = start + first + GRANULE
        mask = torch.cat((hidden.new_zeros(GRANULE, end - GRANULE), hidden), 1).repeat(heads // groups, 1)
        q = query[first : first + GRANULE].unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(1, 2)
        o = functional.scaled_dot_product_attention(
            q.unsqueeze(0),
            keys[:, :end].unsqueeze(0),
            values[:, :end].unsqueeze(0),
            attn_mask=mask,
            scale=scale,
        ).squeeze(0)
        out[first : first + GRANULE] = o.unflatten(1, (-1, GRANULE)).permute(2, 0, 1, 3).flatten(1, 2)
    return out
