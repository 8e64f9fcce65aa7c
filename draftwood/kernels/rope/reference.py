"""Rotary position embedding of the first dims of every head.

Angle of pair i at position p: p * base^(-2i / width), computed in float64 from the integer position (float32 angles
are off by 1e-2 rad at position 1e5, which costs acceptance: SPEC-dflash 0.4) and only then rounded.
The two pairings: "adjacent", dims (2i, 2i+1), as llama files have it; "halves", dims (i, i + width/2), NeoX.
"""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.kernels.norm.reference import rms_norm


def frequencies(width: int, base: float, divisors: Tensor | None = None) -> Tensor:
    """Radians a position, float64 [width/2]; `divisors` [width/2] are the optional per-pair factors of a file."""
    exponent = torch.arange(0, width, 2, dtype=torch.float64) / width
    rate = torch.pow(torch.tensor(base, dtype=torch.float64), -exponent)
    return rate if divisors is None else rate / divisors.double()


def rotation(positions: Tensor, rates: Tensor) -> Tensor:
    """cos + i sin of every angle, complex64 [N, width/2]; positions int64 [N], rates float64 [width/2]."""
    angles = positions.double().unsqueeze(-1) * rates
    return torch.complex(angles.cos().float(), angles.sin().float())


def rotate(x: Tensor, turn: Tensor, pairing: str) -> Tensor:
    """Rotate the first 2 * turn.shape[-1] dims of every head.

    x: float32 [N, H, D]. turn: complex64 [N, width/2], from `rotation`. Returns float32 [N, H, D].
    """
    width = 2 * turn.shape[-1]
    head, rest = x[..., :width], x[..., width:]
    turn = turn.unsqueeze(1)
    if pairing == "adjacent":
        turned = torch.view_as_real(torch.view_as_complex(head.unflatten(-1, (-1, 2))) * turn).flatten(-2)
    else:
        pairs = torch.complex(*head.chunk(2, -1)) * turn
        turned = torch.cat((pairs.real, pairs.imag), -1)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


def rotate_heads(
    q: Tensor,
    k: Tensor,
    turn: Tensor,
    pairing: str,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    out_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """See `draftwood.kernels.rope.load_rotate_heads`."""
    q = q.float() if q_norm is None else rms_norm(q, q_norm, eps)
    k = k.float() if k_norm is None else rms_norm(k, k_norm, eps)
    return rotate(q, turn, pairing).to(out_dtype), rotate(k, turn, pairing).to(out_dtype)
