"""Norms over the last axis.

`rms_norm` and `l2_norm` are the reference, for any device. The `load_` functions give the form that a device runs.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from draftwood.kernels._select import load_form
from draftwood.kernels.norm.reference import l2_norm, rms_norm

__all__ = ["AddRMSNorm", "RMSNorm", "l2_norm", "load_add_rms_norm", "load_rms_norm", "rms_norm"]


class RMSNorm(Protocol):
    """x * weight / sqrt(mean(x^2) + eps) over the last axis, in float32."""

    def __call__(self, x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype = torch.float32) -> Tensor:
        """x float32, float16 or bfloat16 [..., N]; weight float32 [N]. Returns [..., N] in out_dtype.

        A row's bits depend on the row alone. ValueError if the weight has another length.
        """


class AddRMSNorm(Protocol):
    """x += y; then the RMS norm of x."""

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        weight: Tensor,
        eps: float,
        out_dtype: torch.dtype = torch.float32,
        out: Tensor | None = None,
    ) -> Tensor:
        """x float32 [R, N], the residual stream, written in place; y float32, float16 or bfloat16 [R, N]; weight
        float32 [N]. Returns [R, N] in out_dtype, or `out` if that is given, contiguous [R, N], written.

        A row's bits depend on the row alone. ValueError if shapes differ, or x does not begin on 16 bytes on a GPU.
        """


def load_rms_norm(device: str) -> RMSNorm:
    """The RMS norm for a device ("cpu", "cuda")."""
    function: RMSNorm = load_form(__name__, "rms_norm", device)
    return function


def load_add_rms_norm(device: str) -> AddRMSNorm:
    """Residual addition and RMS norm for a device ("cpu", "cuda")."""
    function: AddRMSNorm = load_form(__name__, "add_rms_norm", device)
    return function
