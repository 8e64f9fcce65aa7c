"""Acceptance: the target's own tokens walk the draft tree (SPEC-dflash 3.7), in tensor operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from draftwood.decode.tree import MAX_NODES, DraftTree


@dataclass(frozen=True, slots=True)
class Accepted:
    """The outcome of a round, on the tree's device.

    path        int64 [64]  node indices from the root down, path[0] == 0; -1 after the last one
    count       int64 []    nodes on the path, the root included, >= 1
    next_token  int64 []    the target's own token after the last node: the next pending token
    """

    path: Tensor
    count: Tensor
    next_token: Tensor


def accept(tree: DraftTree, target_tokens: Tensor, at_most: int = MAX_NODES) -> Accepted:
    """Follow the target through the tree.

    target_tokens  int64 [64], the token the target draws after each node; unused slots may hold anything
    at_most        nodes in use at most; a caller that knows it saves operations
    A node is accepted if its parent is and its token is the one the target drew after the parent.  Siblings
    have distinct tokens, so the accepted nodes are one path.  No value is read on the host.
    """
    capacity = tree.tokens.shape[0]
    if at_most == 1:
        alone = torch.full((capacity,), -1, dtype=torch.int64, device=tree.tokens.device)
        alone[:1] = 0
        return Accepted(path=alone, count=tree.count, next_token=target_tokens[0])
    nodes = torch.arange(capacity, device=tree.tokens.device)
    parents = tree.parents.clamp(min=0)
    accepted = (nodes < tree.count) & ((nodes == 0) | (tree.tokens == target_tokens[parents]))
    # Each turn doubles the number of ancestors a node has asked; the root is its own parent.
    for _ in range((at_most - 1).bit_length()):
        accepted = accepted & accepted[parents]
        parents = parents[parents]

    # One place more than the capacity takes the nodes that are not on the path.
    place = torch.where(accepted, tree.depth, capacity)
    path = torch.full((capacity + 1,), -1, dtype=torch.int64, device=nodes.device)
    path = path.scatter(0, place, nodes)[:capacity]
    count = accepted.sum()
    # gather, since indexing with a tensor of no dimensions reads it on the host
    last = path.gather(0, (count - 1).reshape(1))
    return Accepted(path=path, count=count, next_token=target_tokens.gather(0, last).reshape(()))
