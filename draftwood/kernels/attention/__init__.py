"""Softmax attention over a KV cache."""

from __future__ import annotations

from draftwood.kernels.attention.reference import attend_granules, attend_nodes, attend_row

__all__ = ["attend_granules", "attend_nodes", "attend_row"]
