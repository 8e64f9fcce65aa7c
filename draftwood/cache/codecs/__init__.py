"""The KV types on a GPU: a module of the type's name with its `CODEC`, imported on first use, as it needs Triton."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from draftwood.cache.base import Plane
from draftwood.cache.spec import KVSpec
from draftwood.kernels.codec import Codec, KeptRows


def has_codec(spec: KVSpec) -> bool:
    """Whether kernels know this KV type."""
    return find_spec(_module(spec)) is not None


def load_codec(spec: KVSpec) -> Codec:
    """The Triton functions of a KV type."""
    codec: Codec = import_module(_module(spec)).CODEC
    return codec


def _module(spec: KVSpec) -> str:
    return f"{__name__}.{spec.module.rpartition('.')[2]}"


def kept_rows(spec: KVSpec, plane: Plane) -> KeptRows:
    """A plane of this KV type as kernels take it."""
    codec = load_codec(spec)
    return KeptRows(tuple(plane.buffers().values()), codec, codec.tables(plane.head_dim, plane.device))
