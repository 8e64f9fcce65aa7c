"""Attention of a batched decode step: one new row of each of many sequences, used when a target writes training text.

Its rows are not held to the row invariance of a served pass: what is written becomes text to learn from.
"""

from __future__ import annotations

from torch import Tensor

from draftwood.kernels.batched_attention import reference


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Softmax(scale * q keys^T) values over the first `lengths` rows of each sequence's own cache.

    q: [N, H, D]. keys, values: [N, G, S, D], rows from a sequence's length on may hold anything. lengths: int32 or
    int64 [N], at least 1. Returns [N, H, D] in q's dtype, sums in float32. D is a power of two on a GPU.
    """
    if q.is_cuda:
        from draftwood.kernels.batched_attention import triton

        return triton.attend_rows(q, keys, values, lengths, scale)
    return reference.attend_rows(q, keys, values, lengths, scale)
