"""Matrices dequantised once into a float dtype: float32 is the oracle form, bfloat16 is fast where cores have it."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from draftwood.kernels._rows import padded
from draftwood.kernels.dequant import dequantise
from draftwood.kernels.linear.base import LinearForm, LinearRequest, LinearWeight, by_granule, row_multiple


class FloatWeight(LinearWeight):
    """weight: [N, K] in the form's dtype; products accumulate in float32 inside the library."""

    def __init__(self, form: str, weight: Tensor, device: str) -> None:
        self.form, self.weight = form, weight
        self._multiple = row_multiple(device)

    def decode(self, x: Tensor) -> Tensor:
        """See LinearWeight."""
        rows = x.shape[0]
        return functional.linear(padded(x.to(self.weight.dtype), self._multiple), self.weight)[:rows].float()

    def prefill(self, x: Tensor) -> Tensor:
        """See LinearWeight."""
        return by_granule(x.to(self.weight.dtype), self.weight).float()

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return self.weight.nbytes


def _form(name: str, dtype: torch.dtype, accepted: tuple[str, ...]) -> LinearForm:
    def can_run(request: LinearRequest) -> str | None:
        if request.dtype not in accepted:
            return f"dtype {request.dtype} was asked for"
        if request.dtype == "auto" and name == "bf16" and request.device == "cpu" and not cpu_has_bf16():
            return "this CPU has no bfloat16 instructions"
        return None

    def prepare(raw: Tensor, request: LinearRequest) -> LinearWeight:
        return FloatWeight(name, dequantise(raw, request.block_type).to(dtype), request.device)

    return LinearForm(name, can_run, prepare)


def cpu_has_bf16() -> bool:
    """Whether bfloat16 products run on instructions of their own here."""
    return bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())


FLOAT32 = _form("f32", torch.float32, ("auto", "float32"))
BFLOAT16 = _form("bf16", torch.bfloat16, ("auto", "bfloat16"))
