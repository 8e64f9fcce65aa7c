"""The tensors of one gated delta net layer as the GPU form reads and writes them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DeltaLayer:
    """One layer's weights, state and tape; all contiguous and, where a tensor is large, on 16 bytes.

    conv: float32 [4, F], oldest tap first. rate, bias: float32 [Hv], -exp(A_log) and the dt bias.
    state: float32 [Hv, K, V]. window: float32 [3, F], values that the tape's dtype can hold.
    raw: [3 + rows, F], bfloat16 or float32, the tape: the window, then the nodes. decay, beta: float32 [rows, Hv].
    """

    conv: Tensor
    rate: Tensor
    bias: Tensor
    state: Tensor
    window: Tensor
    raw: Tensor
    decay: Tensor
    beta: Tensor
