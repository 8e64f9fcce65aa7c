"""Matrix products of a layer, decode and prefill form side by side."""

from __future__ import annotations

from torch import Tensor

from draftwood.kernels.linear import LinearWeight


class Projection:
    """Several matrices with one input. Calling it gives one float32 [rows, out] per matrix, in order.

    parts: stored matrices with the widths they are split into. scales: optional factor of each result.
    """

    def __init__(self, parts: list[tuple[LinearWeight, list[int]]], scales: list[float | None]) -> None:
        self._parts, self._scales = parts, scales
        self._scaled = any(scale is not None for scale in scales)

    def __call__(self, x: Tensor, prefill: bool = False) -> list[Tensor]:
        """x float32 [rows, in]."""
        results: list[Tensor] = []
        for weight, widths in self._parts:
            y = weight.prefill(x) if prefill else weight.decode(x)
            results.extend(y.split(widths, -1) if len(widths) > 1 else (y,))
        if self._scaled:
            results = [y if scale is None else y * scale for y, scale in zip(results, self._scales, strict=True)]
        return results

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(weight.nbytes for weight, _ in self._parts)


class Linear:
    """One matrix."""

    def __init__(self, projection: Projection) -> None:
        self._projection = projection

    def __call__(self, x: Tensor, prefill: bool = False) -> Tensor:
        """x float32 [rows, in] -> float32 [rows, out]."""
        return self._projection(x, prefill)[0]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._projection.nbytes
