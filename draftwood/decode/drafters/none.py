"""Plain decoding: nothing is proposed."""

from __future__ import annotations

from torch import Tensor

from draftwood.decode.drafters.base import Drafter, DrafterRequest
from draftwood.decode.tree import DraftTree, TreeShape


class NoDrafter(Drafter):
    """The root alone, every round."""

    name = "none"

    def start(self, prompt: Tensor) -> None:
        """Nothing to prepare."""

    def observe(self, tokens: Tensor, features: Tensor | None) -> None:
        """Nothing to remember."""

    def propose(self, pending: Tensor, shape: TreeShape) -> DraftTree:
        """The pending token."""
        return root_only(pending)


def root_only(pending: Tensor) -> DraftTree:
    """A tree of the pending token alone."""
    tree = DraftTree.empty(pending.device)
    tree.tokens[0] = pending
    tree.count.fill_(1)
    return tree


def open_drafter(request: DrafterRequest) -> Drafter:
    """See `decode.drafters.registry`."""
    return NoDrafter()
