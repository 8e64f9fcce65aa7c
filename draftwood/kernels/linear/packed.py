"""The GPU form of every block type: repacked at load, multiplied by the kernels of `triton.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from draftwood.kernels._select import without_triton
from draftwood.kernels.layouts import LAYOUTS
from draftwood.kernels.linear.base import LinearForm, LinearRequest, LinearWeight
from draftwood.kernels.linear.packing import PackedMatrix, pack

if TYPE_CHECKING:
    from draftwood.kernels.operand import Operand, Product


class PackedWeight(LinearWeight):
    """Matrices with one input in the layout of `packing`, their outputs side by side."""

    form = "packed"

    def __init__(self, matrices: Sequence[PackedMatrix]) -> None:
        from draftwood.kernels.linear import triton

        self.joined, self._kernels = triton.join(matrices), triton

    def decode(self, x: Tensor) -> Tensor:
        """See LinearWeight."""
        return self._kernels.decode(x, self.joined)

    def multiply(self, x: Operand) -> Product:
        """See LinearWeight."""
        return self._kernels.multiply(self._kernels.staged(x, self.joined), self.joined)

    def prefill(self, x: Tensor) -> Tensor:
        """See LinearWeight."""
        return self._kernels.prefill(x, self.joined)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self.joined.nbytes


def _can_run(request: LinearRequest) -> str | None:
    if request.dtype != "auto":
        return f"dtype {request.dtype} was asked for"
    if request.block_type.name not in LAYOUTS:
        return f"{request.block_type.name} has no layout"
    return without_triton(request.device)


def _prepare(raw: Tensor, request: LinearRequest) -> LinearWeight:
    return PackedWeight([pack(raw, request.block_type, request.in_features, request.layout)])


def _join(weights: Sequence[LinearWeight]) -> LinearWeight | None:
    from draftwood.kernels.linear.triton import tiling_of

    matrices = [m for weight in weights if isinstance(weight, PackedWeight) for m in weight.joined.matrices]
    return PackedWeight(matrices) if tiling_of(matrices[0].factor.device).joins else None


PACKED = LinearForm("packed", _can_run, _prepare, _join)
