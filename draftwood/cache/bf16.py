"""KV type bf16: rows as torch.bfloat16."""

from __future__ import annotations

import torch

from draftwood.cache.dense import DensePlane


class Plane(DensePlane):
    """Rows as torch.bfloat16."""

    dtype = torch.bfloat16
