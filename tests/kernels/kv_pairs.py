"""The KV types that kernels are tested with, and what a kernel takes of them when it is compiled without a device."""

from __future__ import annotations

from typing import Any

import torch

from draftwood.cache.registry import KV_TYPES, kv_spec, load_plane
from draftwood.kernels.codec import KeptRows
from tests.kernels.compiling import compile_cases

MIXED = ("q8_0/q4_0", "q8_0/tq3_0", "f16/q8_0", "tq4_0/tq3_0", "q5_1/q4_0", "bf16/tq2_0")
PAIRS = (*KV_TYPES, *MIXED)
"""Every type as both K and V, and some pairs."""

WIDTHS = (256, 128, 64)
FIRST, EVERYWHERE = "q8_0", ("f16", "q8_0", "tq3_0")
"""The type of the case that `make test` compiles, and those that are compiled for every target."""


def kv_cases(pairs: tuple[str, ...] = PAIRS, widths: tuple[int, ...] = WIDTHS, hopper: bool | None = None) -> list[Any]:
    """Parameters (target, "PAIR WIDTH") for `split_case`. hopper: of sm_90 alone, or of the other targets."""
    pairs = (FIRST, *(pair for pair in pairs if pair != FIRST))
    names = [f"{pair} {width}" for pair in pairs for width in widths]
    cases = compile_cases(*names, everywhere=[name for name in names if name.split()[0] in EVERYWHERE])
    return [case for case in cases if hopper is None or hopper == (case.values[0] == "sm_90")]


def split_case(case: str) -> tuple[str, str, int]:
    """Types of K and V, and the width of a head."""
    pair, width = case.split()
    key, _, value = pair.partition("/")
    return key, value or key, int(width)


def pointers(kind: str, width: int, axis: str) -> dict[str, torch.dtype | None]:
    """The parameters p_k0 .. p_k3 (axis "k") of a plane: dtypes of its fields and of its codec's tables."""
    from draftwood.cache.codecs import load_codec

    spec = kv_spec(kind)
    tensors = [*load_plane(spec)(1, width, 1, "cpu").buffers().values(), *load_codec(spec).tables(width, "cpu")]
    dtypes = [tensor.dtype for tensor in tensors] + [None] * 4
    return {f"p_{axis}{place}": dtypes[place] for place in range(4)}


def loads(key: str, value: str, width: int) -> dict[str, Any]:
    """What an attention kernel takes of K and V."""
    from draftwood.cache.codecs import load_codec

    both = pointers(key, width, "k") | pointers(value, width, "v")
    return both | {"LOAD_K": load_codec(kv_spec(key)).load, "LOAD_V": load_codec(kv_spec(value)).load}


def plane_for(kind: str, width: int) -> KeptRows:
    """A row as a plane keeps it."""
    from draftwood.cache.codecs import kept_rows

    return kept_rows(kv_spec(kind), load_plane(kv_spec(kind))(1, width, 1, "cpu"))
