"""From a `BufferSpec` to a tensor: what the planner added up is what gets allocated."""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.buffers import BufferSpec


def zeros(spec: BufferSpec, device: str) -> Tensor:
    """The buffer, filled with zeros."""
    return torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype), device=device)
