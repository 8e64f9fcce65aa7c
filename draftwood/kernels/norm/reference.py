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
    return x / torch.sqrt(x.square().sum(-1, keepdim=True)).clamp_min(eps)
