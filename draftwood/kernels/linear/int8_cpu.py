"""torch's weight-only int8 product on a CPU, with bfloat16 activations and one scale a row of the matrix: for drafts.

A Q8_0 matrix is rounded a second time here, by the largest weight of each row: normally distributed weights are then
0.9 % off in all, where Q8_0 alone is 0.5 % off. A target is never loaded so. Of a draft it changes few proposals, and
the product takes 0.6 times as long as the two of the int4 form (docs/log.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from draftwood.kernels.dequant import dequantise
from draftwood.kernels.linear.base import LinearForm, LinearRequest, LinearWeight
from draftwood.kernels.linear.floats import cpu_has_bf16

STEP = 32
"""The library reads rows in steps of this many weights and does not look for the end of one."""

LARGEST_CODE = 127


class Int8Weight(LinearWeight):
    """codes: int8 [N, K]. scale: bfloat16 [N]."""

    form = "int8"

    def __init__(self, weight: Tensor) -> None:
        scale = (weight.abs().amax(1) / LARGEST_CODE).clamp_min(torch.finfo(torch.float32).tiny).bfloat16()
        self._codes = (weight / scale.float().unsqueeze(1)).round().clamp_(-LARGEST_CODE, LARGEST_CODE).to(torch.int8)
        self._scale = scale

    def decode(self, x: Tensor) -> Tensor:
        """See LinearWeight."""
        product: Tensor = torch.ops.aten._weight_int8pack_mm(x.bfloat16(), self._codes, self._scale)
        return product.float()

    def prefill(self, x: Tensor) -> Tensor:
        """Like `decode`; bound by arithmetic, it reads the codes as bfloat16."""
        return functional.linear(x.bfloat16(), self._codes.bfloat16()).float() * self._scale.float()

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self._codes.nbytes + self._scale.nbytes


def _can_run(request: LinearRequest) -> str | None:
    if request.exact:
        return "it rounds the matrix"
    if request.device != "cpu":
        return "a CPU form"
    if request.dtype != "auto":
        return f"dtype {request.dtype} was asked for"
    if not cpu_has_bf16():
        return "this CPU has no bfloat16 instructions"
    if request.in_features % STEP:
        return f"{request.in_features} in features are not a multiple of {STEP}"
    return None


def _prepare(raw: Tensor, request: LinearRequest) -> LinearWeight:
    return Int8Weight(dequantise(raw, request.block_type))


INT8_CPU = LinearForm("int8", _can_run, _prepare)
