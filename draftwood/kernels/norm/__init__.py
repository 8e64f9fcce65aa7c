"""Norms over the last axis."""

from __future__ import annotations

from draftwood.kernels.norm.reference import l2_norm, rms_norm

__all__ = ["l2_norm", "rms_norm"]
