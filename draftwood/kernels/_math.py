# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
"""Arithmetic that the Triton kernels of several operations share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def silu(b_x):
    """x * sigmoid(x)."""
    return b_x / (1.0 + tl.exp(-b_x))


@triton.jit
def power(most):
    """The factor 2**(e - 14) of a largest value in [2**e, 2**(e+1)) and its inverse, by their exponents."""
    exponent = tl.minimum(tl.maximum((most.to(tl.int32, bitcast=True) >> 23) - 14, 1), 253)
    return (exponent << 23).to(tl.float32, bitcast=True), ((254 - exponent) << 23).to(tl.float32, bitcast=True)
