"""KV type f32: rows as torch.float32."""

from __future__ import annotations

import torch

from draftwood.cache.dense import DensePlane


class Plane(DensePlane):
    """Rows as torch.float32."""

    dtype = torch.float32
