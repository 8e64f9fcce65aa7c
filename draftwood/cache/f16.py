"""KV type f16: rows as torch.float16."""

from __future__ import annotations

import torch

from draftwood.cache.dense import DensePlane


class Plane(DensePlane):
    """Rows as torch.float16."""

    dtype = torch.float16
