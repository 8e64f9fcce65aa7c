"""The largest logits of each row, with the logarithm of the sum of exponentials."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from draftwood.kernels._select import load_form

__all__ = ["TopK", "load_top_k"]


class TopK(Protocol):
    """The k largest of each row; with k = 1 its ids are the argmax."""

    def __call__(self, logits: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """logits: float32, float16 or bfloat16 [R, V], no NaN; -inf marks a token that is out. k: 1 to 8, at most V.

        Returns logits / temperature of the k largest, float32 [R, k], descending; their ids, int64 [R, k], the lower
        first among equal logits; and log(sum(exp(logits / temperature))), float32 [R]. A value less the last is the
        token's log-probability. A row's bits depend on the row alone. In a row with a NaN the ids are distinct ids, and
        nothing else is promised. ValueError for another k on a GPU.
        """


def load_top_k(device: str) -> TopK:
    """The search for a device ("cpu", "cuda")."""
    function: TopK = load_form(__name__, "top_k", device)
    return function
