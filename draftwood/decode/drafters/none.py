"""Plain decoding: nothing is proposed."""

from __future__ import annotations

from torch import Tensor

from draftwood.decode.drafters.base import Drafter, DrafterRequest
from draftwood.decode.tree import ROOT_ONLY, DraftTree, TreeShape
from draftwood.kernels.draft_tree import Grown, load_grow


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

    @property
    def on_device(self) -> bool:
        """Nothing needs the host."""
        return True

    def grow(self, pending: Tensor, shape: TreeShape, committed: Tensor) -> Grown:
        """The pending token."""
        return grown_root(pending, committed)


def grown_root(pending: Tensor, committed: Tensor) -> Grown:
    """A tree of the pending token alone, without the host."""
    grow = load_grow(str(pending.device.type))
    nothing = pending.new_zeros(1, 1)
    return grow(pending, nothing, nothing.float(), committed, ROOT_ONLY.growth)


def root_only(pending: Tensor) -> DraftTree:
    """A tree of the pending token alone."""
    tree = DraftTree.empty(pending.device)
    tree.tokens[0] = pending
    tree.count.fill_(1)
    return tree


def open_drafter(request: DrafterRequest) -> Drafter:
    """See `decode.drafters.registry`."""
    return NoDrafter()
