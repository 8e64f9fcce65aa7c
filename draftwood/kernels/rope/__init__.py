"""Rotary position embedding.

`frequencies`, `rotation` and `rotate` are the reference, for any device. `load_rotate_heads` gives the form for the
heads of an attention layer that a device runs.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from draftwood.kernels._select import load_form
from draftwood.kernels.rope.reference import frequencies, rotate, rotation

__all__ = ["RotateHeads", "frequencies", "load_rotate_heads", "rotate", "rotation"]


class RotateHeads(Protocol):
    """RMS norm of each query and key head (where its weight is given), then rotary of its first dims."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        turn: Tensor,
        pairing: str,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
        out_dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """q [R, H, D] and k [R, G, D], float32, float16 or bfloat16, may be views with any row and head strides.

        turn: complex64 [R, width/2] of `rotation`, width <= D. pairing: "halves" or "adjacent". q_norm, k_norm:
        float32 [D]. Returns both, contiguous, in out_dtype; the arithmetic is float32. A row's bits depend on the row
        and its turn alone. ValueError if shapes do not belong together.
        """


def load_rotate_heads(device: str) -> RotateHeads:
    """Head norms and rotary for a device ("cpu", "cuda")."""
    function: RotateHeads = load_form(__name__, "rotate_heads", device)
    return function
