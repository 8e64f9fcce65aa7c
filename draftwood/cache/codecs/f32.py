"""KV type f32 on a GPU."""

from __future__ import annotations

from draftwood.cache.codecs.dense import CODEC

__all__ = ["CODEC"]
