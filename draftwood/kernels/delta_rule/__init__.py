"""The gated delta rule: per node in a decode pass, per granule in prefill.

`nodes`, `advance` and `granules` are the reference, for any device; a CPU runs them. `load_device_form` gives the form
of a GPU, which works in place, reads trees and paths on the device and may be captured in a graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from draftwood.kernels._select import load_device_module, load_form
from draftwood.kernels.delta_rule.layer import DeltaLayer
from draftwood.kernels.delta_rule.reference import DeltaShape, advance, granules, nodes

__all__ = [
    "DEVICE_WIDTHS",
    "DeltaLayer",
    "DeltaShape",
    "DeviceForm",
    "GatedNorm",
    "advance",
    "granules",
    "load_device_form",
    "load_gated_norm",
    "nodes",
]


DEVICE_WIDTHS = (16, 32, 64, 128, 256)
"""Widths K and V that the form of a GPU takes."""


class DeviceForm(Protocol):
    """A decode round is `plan_tree` once; `stage_nodes`, `tree_rule` and `gated_norm` a layer; `commit_nodes` once.

    K and V are powers of two from 16 to 256. A node's bits depend on the path to it alone, and what `commit_nodes`
    leaves is what plain decoding along the path would have left. ValueError if shapes do not fit.
    """

    def plan_tree(self, parents: Tensor, order: Tensor) -> Tensor:
        """parents: int64 [R], 1 <= R <= 64, -1 of a root and of an unused slot, which is treated as one. order: int32
        [R], a depth-first walk: each node is followed by its subtree. Returns int32 [R, 8], what the walk does."""

    def stage_nodes(
        self, raw: Tensor, a: Tensor, b: Tensor, plan: Tensor, layer: DeltaLayer, shape: DeltaShape
    ) -> Tensor:
        """raw: float32 [R, F]. a, b: float32 [R, Hv], logits of decay and beta. All may be views of one product.

        Writes the layer's tape. Returns float32 [R, width], the visits' q, k, v and gates, for `tree_rule`.
        """

    def tree_rule(self, visits: Tensor, plan: Tensor, state: Tensor, slots: Tensor, shape: DeltaShape) -> Tensor:
        """state: float32 [Hv, K, V], only read. slots: float32 scratch of `slot_shape`, the same for all layers.

        Returns the nodes' outputs, float32 [R, Hv, V].
        """

    def gated_norm(
        self, x: Tensor, z: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """rms_norm(x) * weight * silu(z): x float32 [N, Hv, V], z [N, Hv V], weight float32 [V] -> [N, Hv V]."""

    def layer_table(self, layers: Iterable[DeltaLayer]) -> Tensor:
        """Where the layers' tensors lie, int64 [L, 6]; it holds as long as they are not allocated anew."""

    def commit_nodes(self, table: Tensor, path: Tensor, count: Tensor, shape: DeltaShape, tape: torch.dtype) -> None:
        """Moves all layers' states and windows along nodes path[:count] of their tapes.

        path: int64, at least `count` of it. count: int64 or int32, one number. tape: the tapes' dtype. A tape serves
        one commit; after it `stage_nodes` comes first.
        """

    def prefill(self, raw: Tensor, a: Tensor, b: Tensor, layer: DeltaLayer, shape: DeltaShape, count: int) -> Tensor:
        """A prefill pass: raw float32 [T, F], a and b float32 [T, Hv], T a multiple of 64, the first `count` rows real.

        Moves the layer's state and window. Returns float32 [T, Hv, V], rows behind `count` mean nothing. A row's bits
        do not depend on how the granules are spread over passes. Relative error under 1e-4, or 1e-3 where keys hardly
        differ.
        """


class GatedNorm(Protocol):
    """rms_norm(x) * weight * silu(z) of a layer's heads."""

    def __call__(self, x: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x float32 [N, Hv, V], z [N, Hv V], weight float32 [V] -> [N, Hv V]; a row's bits depend on the row alone."""


def load_gated_norm(device: str) -> GatedNorm:
    """The norm for a device ("cpu", "cuda")."""
    function: GatedNorm = load_form(__name__, "gated_norm", device)
    return function


def load_device_form(device: str) -> DeviceForm:
    """The form for a device ("cuda"); a DeviceError says why there is none."""
    form: DeviceForm = load_device_module(__name__, "the delta rule in place", device)
    return form
