"""Softmax attention over a KV cache.

`attend_row`, `attend_nodes` and `attend_granules` are the reference, for any device. `load_attend_tree` gives the form
for the nodes of a decode pass that a GPU runs over the rows as their KV type keeps them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from torch import Tensor

from draftwood.kernels._select import ModuleForm, select, without_triton
from draftwood.kernels.attention.reference import attend_granules, attend_nodes, attend_row
from draftwood.kernels.codec import KeptRows

__all__ = ["AttendTree", "attend_granules", "attend_nodes", "attend_row", "load_attend_tree"]


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


def load_attend_tree(device: str) -> AttendTree:
    """Attention of a decode pass for a GPU ("cuda"); a DeviceError says why a device has none."""
    form = select("attend_tree", (ModuleForm("triton", without_triton),), device)
    function: AttendTree = import_module(f"{__name__}.{form.name}").attend_tree
    return function
