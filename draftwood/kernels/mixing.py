"""A 32-bit mixer, elementwise on int32: what a counter becomes depends on the keys alone, on a CPU and on a GPU."""

from __future__ import annotations

from torch import Tensor


def int32(bits: int) -> int:
    """The signed number with the lowest 32 bits of `bits`."""
    bits &= 0xFFFFFFFF
    return bits - 2**32 if bits >= 2**31 else bits


# Multipliers with low avalanche bias: Chris Wellons, "Prospecting for Hash Functions" (2018).
FIRST_MULTIPLIER = int32(0x7FEB352D)
SECOND_MULTIPLIER = int32(0x846CA68B)
# 2**32 divided by the golden ratio: tells keys apart that are made of the same words.
SPREAD = 0x9E3779B9


def shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int32; torch's own copies the sign."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def mix(x: Tensor, middle: Tensor | int = 0) -> Tensor:
    """A bijective 32-bit mixer, elementwise on int32; `x` is overwritten.

    `middle` is a second key, added halfway; it must be well mixed itself, as it meets half a mixer only.
    """
    x ^= shifted(x, 16)
    x *= FIRST_MULTIPLIER
    x ^= shifted(x, 15)
    x += middle
    x *= SECOND_MULTIPLIER
    x ^= shifted(x, 16)
    return x


def keyed(x: Tensor, first: Tensor | int, second: Tensor | int) -> Tensor:
    """int32 `x` mixed with two 32-bit keys, each bit of which reaches all of the result."""
    return mix(mix(x ^ first) ^ second)
