"""Softmax attention over a KV cache.

`attend_row`, `attend_nodes` and `attend_granules` are the reference, for any device. `load_attend_tree` gives the form
for the nodes of a decode pass that a GPU runs over the rows as their KV type keeps them.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from draftwood.kernels._select import load_device_module
from draftwood.kernels.attention.reference import attend_granules, attend_nodes, attend_row
from draftwood.kernels.codec import KeptRows

__all__ = [
    "DEVICE_WIDTHS",
    "AttendBlock",
    "AttendGranules",
    "AttendTree",
    "attend_granules",
    "attend_nodes",
    "attend_row",
    "load_attend_block",
    "load_attend_granules",
    "load_attend_tree",
]

DEVICE_WIDTHS = (64, 128, 256)
"""Head widths that the kernels of a GPU take."""


class AttendTree(Protocol):
    """Each node of a decode pass over its own root-to-node path: the committed rows, then its ancestors and itself."""

    def __call__(
        self,
        q: Tensor,
        keys: KeptRows,
        values: KeptRows,
        committed: Tensor,
        depth: Tensor,
        ancestors: Tensor,
        staging: int,
        scale: float,
    ) -> Tensor:
        """q float32 [R, H, D] in the space of the kept keys, 1 <= R <= 64 -> float32 [R, H, D] in that of the values.

        keys, values: planes whose row p is position p for p < C, and whose row staging + i is node i; staging leaves
        room for 64 rows behind the capacity. committed: C, int64 [1]. depth: int64 [R]. ancestors: int32 or int64
        [R, at least the deepest + 1], ancestors[i, d] the node at depth d on node i's path, for d <= depth[i]; the
        rest may hold anything. The lengths are read on the device, so a captured call serves every C.
        H is G times 1 to 16, D a power of two from 32 on. Operands of products are fp16 (rows beyond it become its
        largest value), sums float32. A node's bits depend on its query and on the kept rows of its path at their
        positions alone. ValueError if shapes do not belong together.
        """


class AttendGranules(Protocol):
    """Causal attention of a prefill pass over the kept rows, its own included."""

    def __call__(self, query: Tensor, keys: KeptRows, values: KeptRows, start: int, scale: float) -> Tensor:
        """query float32 [T, H, D] in the space of the kept keys, at positions start .. start+T-1, whole granules ->
        float32 [T, H, D] in the space of the kept values. A row's bits depend on its position, not on the pass."""


class AttendBlock(Protocol):
    """All rows of a draft's block over its context and over themselves, as `block.block_mask` says."""

    def __call__(
        self,
        query: Tensor,
        keys: KeptRows,
        values: KeptRows,
        committed: Tensor,
        first: Tensor,
        window: int | None,
        causal: bool,
        scale: float,
    ) -> Tensor:
        """query float32 [B, H, D] in the space of the kept keys, row j at position C + j -> float32 [B, H * D].

        committed: C, and first: the position of row 0 of the planes, int64 [1], both read on the device. The block's
        own rows lie behind the context.
        """


def load_attend_tree(device: str) -> AttendTree:
    """Attention of a decode pass for a GPU ("cuda"); a DeviceError says why a device has none."""
    function: AttendTree = load_device_module(__name__, "attend_tree", device).attend_tree
    return function


def load_attend_granules(device: str) -> AttendGranules:
    """Attention of a prefill pass for a GPU ("cuda"); a DeviceError says why a device has none."""
    module = load_device_module(__name__, "attend_granules", device, "prefill_triton")
    function: AttendGranules = module.attend_granules
    return function


def load_attend_block(device: str) -> AttendBlock:
    """Attention of a draft's block for a GPU ("cuda"); a DeviceError says why a device has none."""
    module = load_device_module(__name__, "attend_block", device, "block_triton")
    function: AttendBlock = module.attend_block
    return function
