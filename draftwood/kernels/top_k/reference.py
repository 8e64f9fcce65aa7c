"""The largest logits of each row and the logarithm of the sum of exponentials, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(logits: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """See `draftwood.kernels.top_k.load_top_k`."""
    ids = torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :k]
    scaled = logits.float() / temperature
    return scaled.gather(1, ids), ids, torch.logsumexp(scaled, 1)
