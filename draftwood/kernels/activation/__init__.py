"""Elementwise activations with row-independent bits.

`sigmoid`, `silu` and `softplus` are the reference, for any device. `load_silu_gate` gives the form of a feed-forward
network's gate that a device runs.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from draftwood.kernels._select import load_form
from draftwood.kernels.activation.reference import sigmoid, silu, softplus

__all__ = ["SiluGate", "load_silu_gate", "sigmoid", "silu", "softplus"]


class SiluGate(Protocol):
    """silu(gate) * up, elementwise, in float32."""

    def __call__(self, gate: Tensor, up: Tensor, out_dtype: torch.dtype = torch.float32) -> Tensor:
        """gate and up [R, N], float32, float16 or bfloat16, may be halves of one product. Returns [R, N] in out_dtype.

        A value's bits depend on its gate and up alone. ValueError if the shapes differ.
        """


def load_silu_gate(device: str) -> SiluGate:
    """The gate for a device ("cpu", "cuda")."""
    function: SiluGate = load_form(__name__, "silu_gate", device)
    return function
