"""Matrix products of a layer, decode and prefill form side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from draftwood.kernels.linear import LinearWeight

if TYPE_CHECKING:
    from draftwood.kernels.operand import Operand, Product


class Projection:
    """Several matrices with one input. Calling it gives one float32 [rows, out] per matrix, in order.

    parts: stored matrices with the widths they are split into. scales: optional factor of each result.
    """

    def __init__(self, parts: list[tuple[LinearWeight, list[int]]], scales: list[float | None]) -> None:
        self._parts, self._scales = parts, scales
        self._scaled = any(scale is not None for scale in scales)

    def __call__(self, x: Operand, prefill: bool = False) -> list[Tensor]:
        """x [rows, in], for prefill float32."""
        results: list[Tensor] = []
        for weight, widths in self._parts:
            y = weight.prefill(_rows(x)) if prefill else _summed(weight.multiply(x))
            results.extend(y.split(widths, -1) if len(widths) > 1 else (y,))
        if self._scaled:
            results = [y if scale is None else y * scale for y, scale in zip(results, self._scales, strict=True)]
        return results

    def product(self, x: Operand) -> Product:
        """All results of a decode pass side by side [rows, all outs], not summed yet where the form leaves parts."""
        if len(self._parts) == 1 and not self._scaled:
            return self._parts[0][0].multiply(x)
        results = self(x)
        return torch.cat(results, -1) if len(results) > 1 else results[0]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(weight.nbytes for weight, _ in self._parts)


class Linear:
    """One matrix."""

    def __init__(self, projection: Projection) -> None:
        self._projection = projection

    def __call__(self, x: Operand, prefill: bool = False) -> Tensor:
        """x [rows, in], for prefill float32 -> float32 [rows, out]."""
        return self._projection(x, prefill)[0]

    def product(self, x: Operand) -> Product:
        """See Projection."""
        return self._projection.product(x)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._projection.nbytes


def _rows(x: Operand) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError("a prefill pass takes float32 rows")
    return x


def _summed(product: Product) -> Tensor:
    return product if isinstance(product, Tensor) else product.tensor()
