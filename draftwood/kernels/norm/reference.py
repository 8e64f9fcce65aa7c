"""RMS norm and L2 norm over the last axis, float32."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x * weight / sqrt(mean(x^2) + eps) over the last axis; x float32 [..., D], weight float32 [D]."""
    return functional.rms_norm(x, weight.shape, weight, eps)


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
