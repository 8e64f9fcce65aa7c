"""The GPU form of every block type: repacked at load, multiplied by the kernels of `triton.py`."""

from __future__ import annotations

from torch import Tensor

from draftwood.kernels._select import without_triton
from draftwood.kernels.layouts import LAYOUTS
from draftwood.kernels.linear.base import LinearForm, LinearRequest, LinearWeight
from draftwood.kernels.linear.packing import PackedMatrix, pack


class PackedWeight(LinearWeight):
    """A matrix in the layout of `packing`."""

    form = "packed"

    def __init__(self, matrix: PackedMatrix) -> None:
        from draftwood.kernels.linear import triton

        self.matrix, self._kernels = matrix, triton

    def decode(self, x: Tensor) -> Tensor:
        """See LinearWeight."""
        return self._kernels.decode(x, self.matrix)

    def prefill(self, x: Tensor) -> Tensor:
        """See LinearWeight."""
        return self._kernels.prefill(x, self.matrix)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self.matrix.nbytes


def _can_run(request: LinearRequest) -> str | None:
    if request.dtype != "auto":
        return f"dtype {request.dtype} was asked for"
    if request.block_type.name not in LAYOUTS:
        return f"{request.block_type.name} has no layout"
    return without_triton(request.device)


def _prepare(raw: Tensor, request: LinearRequest) -> LinearWeight:
    return PackedWeight(pack(raw, request.block_type, request.in_features))


PACKED = LinearForm("packed", _can_run, _prepare)
