"""RMS norm and L2 norm over the last axis, float32."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """x * weight / sqrt(mean(x^2) + eps) over the last axis; x [..., D], weight float32 [D], sums in float32."""
    return functional.rms_norm(x.float(), weight.shape, weight, eps).to(out_dtype)


def add_rms_norm(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    eps: float,
    out_dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Adds y to x in place, then `rms_norm(x)`, into `out` if given; x float32 [R, N], y [R, N], weight float32 [N]."""
    x += y
    made = rms_norm(x, weight, eps, out_dtype)
    return made if out is None else out.copy_(made)


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """x / max(|x|, eps) over the last axis (SPEC-qwen35 2.3); x float32 [..., D]."""
    return x / torch.sqrt(ordered_sum(x.square())).clamp_min(eps)


def ordered_sum(x: Tensor) -> Tensor:
    """Sum over the last axis, kept: [..., D] -> [..., 1], by adding halves.

    A GPU's own reduction picks its order by how many sums there are, so a row's bits would depend on the other rows.
    """
    width = x.shape[-1]
    x = functional.pad(x, (0, (1 << (width - 1).bit_length()) - width))
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x
