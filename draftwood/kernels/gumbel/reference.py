"""Position-keyed Gumbel noise and the draw with it (DESIGN law 1), in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

# Below this temperature a division could overflow float32, and already here noise cannot outweigh any logit.
LOWEST_TEMPERATURE = 1e-6


def _int32(bits: int) -> int:
    """The signed number with the lowest 32 bits of `bits`."""
    bits &= 0xFFFFFFFF
    return bits - 2**32 if bits >= 2**31 else bits


# Multipliers with low avalanche bias: Chris Wellons, "Prospecting for Hash Functions" (2018).
FIRST_MULTIPLIER = _int32(0x7FEB352D)
SECOND_MULTIPLIER = _int32(0x846CA68B)
# 2**32 divided by the golden ratio: tells keys apart that are made of the same words.
SPREAD = 0x9E3779B9


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int32; torch's own copies the sign."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _mix(x: Tensor, middle: Tensor | int = 0) -> Tensor:
    """A bijective 32-bit mixer, elementwise on int32; `x` is overwritten.

    `middle` is a second key, added halfway; it must be well mixed itself, as it meets half a mixer only.
    """
    x ^= _shifted(x, 16)
    x *= FIRST_MULTIPLIER
    x ^= _shifted(x, 15)
    x += middle
    x *= SECOND_MULTIPLIER
    x ^= _shifted(x, 16)
    return x


def _keyed(x: Tensor, first: Tensor | int, second: Tensor | int) -> Tensor:
    """int32 `x` mixed with two 32-bit keys, each bit of which reaches all of the result."""
    return _mix(_mix(x ^ first) ^ second)


def token_keys(seed: int, vocab_size: int, device: torch.device | str) -> Tensor:
    """First round of the noise, from the 64-bit seed and each token id: int32 [vocab_size]."""
    tokens = torch.arange(vocab_size, dtype=torch.int32, device=device)
    return _keyed(tokens, _int32(seed), _int32((seed >> 32) ^ SPREAD))


def log_exponential_noise(keys: Tensor, seed: int, positions: Tensor) -> Tensor:
    """Minus Gumbel noise for each position and token: float32 [R, V], always finite.

    keys       int32 [V] of `token_keys` for the same seed
    positions  int64 [R], >= 0
    """
    low, high = positions.to(torch.int32), (positions >> 32).to(torch.int32)
    halves = _int32(seed), _int32(seed >> 32)
    # Two words, each of all bits of seed and position: one enters the second round, one its middle.
    entry = _keyed(_keyed(low, halves[0] ^ _int32(SPREAD), high), halves[1], 0)
    middle = _keyed(_keyed(low, halves[1], high), halves[0], _int32(SPREAD))
    x = _mix(keys ^ entry[:, None], middle[:, None])
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
