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
        KVSpec("q5_1", (), lambda d: 6.0, 32, "draftwood.cache.q5_1"),
        KVSpec("q5_0", ("q5",), lambda d: 5.5, 32, "draftwood.cache.q5_0"),
        KVSpec("q4_1", (), lambda d: 5.0, 32, "draftwood.cache.q4_1"),
        KVSpec("q4_0", ("q4",), lambda d: 4.5, 32, "draftwood.cache.q4_0"),
        KVSpec("tq4_0", ("tq4", "turbo4"), lambda d: 4 + 16 / d, 16, "draftwood.cache.tq4_0"),
        KVSpec("tq3_0", ("tq3", "turbo3"), lambda d: 2 + (16 + 32 * -(-d // 32)) / d, 16, "draftwood.cache.tq3_0"),
        KVSpec("tq2_0", ("tq2", "turbo2"), lambda d: 2 + 16 / d, 16, "draftwood.cache.tq2_0"),
    )
}

TYPICAL_WIDTH = 128
"""A head width for messages that come before a model is known."""

_BY_SPELLING = {s: spec for spec in KV_TYPES.values() for s in (spec.name, *spec.aliases)}


def names() -> list[str]:
    """The names of all KV types."""
    return list(KV_TYPES)


def with_bits(head_dim: int) -> str:
    """The KV types that a head width allows, each with its bits a value: "f32 32, f16 16, ..."."""
    fitting = (spec for spec in KV_TYPES.values() if head_dim % spec.head_multiple == 0)
    return ", ".join(f"{spec.name} {spec.bits(head_dim):.4g}" for spec in fitting)


def kv_spec(name: str) -> KVSpec:
    """The KV type of that name or alias; a UsageError lists the known ones."""
    spec = _BY_SPELLING.get(name.strip().lower())
    if spec is None:
        raise UsageError(
            f"unknown KV type {name[:40]!r}; the known ones, with their bits a value in heads of {TYPICAL_WIDTH}, are "
            f"{with_bits(TYPICAL_WIDTH)} (K and V may differ, as 'q8_0/tq4_0')."
        )
    return spec


def kv_label(pair: tuple[KVSpec, KVSpec]) -> str:
    """One name, or both as in "q8_0/f16" where K and V differ."""
    return "/".join(dict.fromkeys(kind.name for kind in pair))


def kv_pair(name: str) -> tuple[KVSpec, KVSpec]:
    """`"q8_0"` or `"q8_0/f16"` -> the types of K and V."""
    key, slash, value = name.partition("/")
    return kv_spec(key), kv_spec(value if slash else key)


def check_width(kv: tuple[KVSpec, KVSpec], head_dim: int) -> None:
    """A UsageError unless heads of `head_dim` values can be kept in these types of K and V."""
    for spec in kv:
        if head_dim % spec.head_multiple:
            raise UsageError(
                f"KV type {spec.name} needs a head width that is a multiple of {spec.head_multiple}, this model's is "
                f"{head_dim}; use one of these, given with their bits a value: {with_bits(head_dim)}."
            )


def load_plane(spec: KVSpec) -> type[Plane]:
    """The class that stores this KV type's rows."""
    plane: type[Plane] = import_module(spec.module).Plane
    return plane
