"""Elementwise activations with row-independent bits."""

from __future__ import annotations

from draftwood.kernels.activation.reference import sigmoid, silu, softplus

__all__ = ["sigmoid", "silu", "softplus"]
