"""The KV types by name. One line a type; data only, so the planner can read it without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from draftwood.cache.spec import KVSpec
from draftwood.errors import UsageError

if TYPE_CHECKING:
    from draftwood.cache.base import Plane

KV_TYPES: dict[str, KVSpec] = {
    spec.name: spec
    for spec in (
        KVSpec("f32", ("float32",), lambda d: 32.0, 1, "draftwood.cache.f32"),
        KVSpec("f16", ("float16", "half"), lambda d: 16.0, 1, "draftwood.cache.f16"),
        KVSpec("bf16", ("bfloat16",), lambda d: 16.0, 1, "draftwood.cache.bf16"),
        KVSpec("q8_0", ("q8",), lambda d: 8.5, 32, "draftwood.cache.q8_0"),
    )
}

_BY_SPELLING = {s: spec for spec in KV_TYPES.values() for s in (spec.name, *spec.aliases)}


def names() -> list[str]:
    """The names of all KV types."""
    return list(KV_TYPES)


def kv_spec(name: str) -> KVSpec:
    """The KV type of that name or alias; a UsageError lists the known ones."""
    spec = _BY_SPELLING.get(name.strip().lower())
    if spec is None:
        raise UsageError(
            f"unknown KV type {name!r}; the known ones are {', '.join(KV_TYPES)} (K and V may differ, as 'q8_0/f16')."
        )
    return spec


def kv_pair(name: str) -> tuple[KVSpec, KVSpec]:
    """`"q8_0"` or `"q8_0/f16"` -> the types of K and V."""
    key, slash, value = name.partition("/")
    return kv_spec(key), kv_spec(value if slash else key)


def load_plane(spec: KVSpec) -> type[Plane]:
    """The class that stores this KV type's rows."""
    plane: type[Plane] = import_module(spec.module).Plane
    return plane
