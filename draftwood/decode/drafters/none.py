"""Plain decoding: nothing is proposed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from draftwood.decode.drafters.base import Drafter, DrafterRequest, Guesses
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

    def mark(self) -> Any:
        """Nothing to come back to."""

    def rewind(self, mark: Any) -> None:
        """Nothing to forget."""

    @property
    def on_device(self) -> bool:
        """Nothing needs the host."""
        return True

    def guess(self, pending: Tensor, shape: TreeShape) -> Guesses:
        """Nothing that a tree of the root alone would look at."""
        return no_guesses(pending)


def no_guesses(pending: Tensor) -> Guesses:
    """What ROOT_ONLY grows from."""
    nothing = pending.new_zeros(1, 1)
    return Guesses(nothing, nothing.float())


def root_only(pending: Tensor) -> DraftTree:
    """A tree of the pending token alone."""
    tree = DraftTree.empty(pending.device)
    tree.tokens[0] = pending
    tree.count.fill_(1)
    return tree


def open_drafter(request: DrafterRequest) -> Drafter:
    """See `decode.drafters.registry`."""
    return NoDrafter()
