"""The one value a model's forward pass takes: rows of several sequences, packed.

Letters: N rows of the pass, E hidden width. A pass is either a prefill pass (consecutive tokens, `parents` is
None) or a decode pass (the nodes of a draft tree, `parents` names each row's parent).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GRANULE = 64
"""Prefill arithmetic is defined on granules of this many tokens at absolute multiples of it (DESIGN law 1)."""

PASS_TOKENS = 32 * GRANULE
"""Tokens of the largest prefill pass. A row's bits do not depend on it; memory for a pass does."""

MAX_ROWS = 64
"""A decode pass has 1 to this many rows: the root and up to 63 candidates (DESIGN law 1)."""


@dataclass(frozen=True)
class Nodes:
    """The shape of a decode pass's tree as kernels read it, on the device.

    depth: int64 [R]. ancestors: int32 or int64 [R, at least the deepest + 1], ancestors[i, d] the node at depth d on
    node i's path, i itself included. order: int32 or int64 [R], depth first: a node, then its whole subtree.
    """

    depth: Tensor
    ancestors: Tensor
    order: Tensor


@dataclass(frozen=True)
class ForwardInput:
    """Rows of one pass.

    tokens: int64 [N], token ids.
    positions: int64 [N], logical positions (a node's is the committed length plus its depth).
    parents: int64 [N] or None. Row index of each node's parent inside its own sequence, -1 for a root, a parent
        before its children. None: every sequence's rows are consecutive prompt tokens.
    offsets: row offsets of the packed sequences, `(0, N)` for a single one.
    wanted: indices of the layers whose output (the residual stream after the layer) the caller wants.
    nodes: more of the tree's shape, where it is known; else it is worked out from `parents` if a kernel asks.
    """

    tokens: Tensor
    positions: Tensor
    parents: Tensor | None = None
    offsets: tuple[int, ...] = ()
    wanted: tuple[int, ...] = ()
    nodes: Nodes | None = None


@dataclass(frozen=True)
class ForwardOutput:
    """What a pass returns.

    hidden: float32 [N, E], the rows after the last block and the output norm (the head's input).
    features: float32 [N, len(wanted) * E], the wanted layers' outputs side by side in the order asked for, or None.
    """

    hidden: Tensor
    features: Tensor | None


def depth_first(parents: Sequence[int]) -> list[int]:
    """Node indices so that each node is followed by its whole subtree; children by index."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)
    order: list[int] = []
    stack = children.get(-1, [])[::-1]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(reversed(children.get(node, [])))
    return order
