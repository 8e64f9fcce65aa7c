"""The KV types on a GPU: a module of the type's name with its `CODEC`, imported on first use, as it needs Triton."""

from __future__ import annotations

from importlib import import_module

from draftwood.cache.base import Plane
from draftwood.cache.spec import KVSpec
from draftwood.kernels.codec import Codec, KeptRows


def load_codec(spec: KVSpec) -> Codec:
    """The Triton functions of a KV type."""
    codec: Codec = import_module(f"{__name__}.{spec.module.rpartition('.')[2]}").CODEC
    return codec


def kept_rows(spec: KVSpec, plane: Plane) -> KeptRows:
    """A plane of this KV type as kernels take it."""
    codec = load_codec(spec)
    return KeptRows(tuple(plane.buffers().values()), codec, codec.tables(plane.head_dim, plane.device))
