"""Rotary position embedding."""

from __future__ import annotations

from draftwood.kernels.rope.reference import frequencies, rotate, rotation

__all__ = ["frequencies", "rotate", "rotation"]
