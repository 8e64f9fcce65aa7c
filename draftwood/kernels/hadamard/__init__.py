"""A fixed rotation of head vectors that spreads every value over all of them."""

from __future__ import annotations

from draftwood.kernels.hadamard.reference import hadamard, piece_width, rotate, rotation, signs

__all__ = ["hadamard", "piece_width", "rotate", "rotation", "signs"]
