"""The target's own draw: argmax over tokens of logit / temperature plus noise that depends on the token's place.

`token_keys` and `log_exponential_noise` define the noise. `load_gumbel_argmax` gives the draw that a device runs.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from draftwood.kernels._select import load_form
from draftwood.kernels.gumbel.reference import LOWEST_TEMPERATURE, log_exponential_noise, token_keys

__all__ = ["LOWEST_TEMPERATURE", "GumbelArgmax", "load_gumbel_argmax", "log_exponential_noise", "token_keys"]


class GumbelArgmax(Protocol):
    """For each row the token with the largest logit / temperature - `log_exponential_noise`, or the likeliest one."""

    def __call__(self, logits: Tensor, positions: Tensor, seeds: Tensor, temperatures: Tensor) -> Tensor:
        """logits: float32, float16 or bfloat16 [R, V], no NaN; -inf marks a token that is out.

        positions: int64 [R], >= 0, where the token that is drawn will stand. seeds: int64 [R], or [1] for all rows, the
        request's 64-bit seed as a signed number. temperatures: float32 [R] or [1]; at 0 (or below) a row takes its
        likeliest token. Returns int64 [R]; among equals the lowest id. A row's token depends on the row alone.

        The noise's integers are the same on every device; its logarithms are rounded as the device rounds them, so
        devices may differ where two tokens are equal to the last places of a float32. All arguments are read on the
        device. ValueError if the shapes do not fit.
        """


def load_gumbel_argmax(device: str) -> GumbelArgmax:
    """The draw for a device ("cpu", "cuda")."""
    function: GumbelArgmax = load_form(__name__, "gumbel_argmax", device)
    return function
