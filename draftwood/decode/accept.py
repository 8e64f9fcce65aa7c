"""Acceptance: the target's own tokens walk the draft tree (SPEC-dflash 3.7)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from draftwood.decode.tree import MAX_NODES, DraftTree
from draftwood.kernels.draft_tree.reference import accept as walk_path


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
    return Accepted(*walk_path(tree.tokens, tree.parents, tree.depth, tree.count, target_tokens, at_most))
