"""Position-keyed Gumbel noise and the draw with it (DESIGN law 1), in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.kernels.mixing import SPREAD, int32, keyed, mix

# Below this temperature a division could overflow float32, and already here noise cannot outweigh any logit.
LOWEST_TEMPERATURE = 1e-6


def token_keys(seed: int, vocab_size: int, device: torch.device | str) -> Tensor:
    """First round of the noise, from the 64-bit seed and each token id: int32 [vocab_size]."""
    tokens = torch.arange(vocab_size, dtype=torch.int32, device=device)
    return keyed(tokens, int32(seed), int32((seed >> 32) ^ SPREAD))


def log_exponential_noise(keys: Tensor, seed: int, positions: Tensor) -> Tensor:
    """Minus Gumbel noise for each position and token: float32 [R, V], always finite.

    keys       int32 [V] of `token_keys` for the same seed
    positions  int64 [R], >= 0
    """
    low, high = positions.to(torch.int32), (positions >> 32).to(torch.int32)
    halves = int32(seed), int32(seed >> 32)
    # Two words, each of all bits of seed and position: one enters the second round, one its middle.
    entry = keyed(keyed(low, halves[0] ^ int32(SPREAD), high), halves[1], 0)
    middle = keyed(keyed(low, halves[1], high), halves[0], int32(SPREAD))
    x = mix(keys ^ entry[:, None], middle[:, None])
    # Near 0 all 32 bits count: they make the long tail of the noise.  Near 1, float32 must not round up to 1.
    uniform = x.view(torch.uint32).to(torch.float32).add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_()


def gumbel_argmax(logits: Tensor, positions: Tensor, seeds: Tensor, temperatures: Tensor) -> Tensor:
    """See `draftwood.kernels.gumbel.load_gumbel_argmax`."""
    rows, columns = logits.shape
    drawn = []
    settings = zip(seeds.expand(rows).tolist(), temperatures.expand(rows).tolist(), strict=True)
    # One row at a time, as a CPU library may compute the end of a larger array by other code.
    for row, (seed, temperature) in enumerate(settings):
        values = logits[row : row + 1].float()
        if temperature > 0:
            keys = token_keys(seed, columns, logits.device)
            noise = log_exponential_noise(keys, seed, positions[row : row + 1])
            values = values / max(temperature, LOWEST_TEMPERATURE) - noise
        drawn.append(values.argmax(1))
    return torch.cat(drawn) if drawn else positions.new_empty(0)
