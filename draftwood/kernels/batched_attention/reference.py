"""One new row of each of many sequences against its own cache, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """See `draftwood.kernels.batched_attention.attend_rows`."""
    group = q.shape[1] // keys.shape[1]
    heads = q.float().unflatten(1, (-1, group))
    scores = torch.einsum("ngqd,ngsd->ngqs", heads, keys.float()) * scale
    hidden = torch.arange(keys.shape[2], device=q.device) >= lengths.view(-1, 1, 1, 1)
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
    # Rows behind a sequence's end may hold anything, NaN too.
    seen = values.float().masked_fill(hidden.transpose(-1, -2), 0.0)
    return torch.einsum("ngqs,ngsd->ngqd", weights, seen).flatten(1, 2).to(q.dtype)
