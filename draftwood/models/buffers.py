"""The buffers of a target and of a draft, layer by layer, from their facts alone. Torch-free.

`pass_buffers` has what passes use beside these. Letters: E hidden width, R rows of a decode pass, T tokens of a
prefill pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

from draftwood.batch import GRANULE, MAX_ROWS, PASS_TOKENS
from draftwood.buffers import BufferSpec
from draftwood.cache.buffers import kv_buffers, plane_rows, recurrent_buffers, tape_buffers, token_buffer
from draftwood.cache.spec import KVSpec
from draftwood.formats.source import TensorInfo
from draftwood.kernels import buffers as kernels
from draftwood.models.draft_spec import DraftSpec
from draftwood.models.spec import ModelSpec

TABLE = "token_embd.weight"
HEAD = "output.weight"
CONVOLUTION = "ssm_conv1d.weight"

TOGETHER = (
    ("attn_q", "attn_k", "attn_v"),
    ("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha"),
    ("ffn_gate", "ffn_up"),
)
"""Matrices of a block with one input, in the order in which they are given to `Weights.projection`."""

_PLACES = {stem: (group[0], order) for group in TOGETHER for order, stem in enumerate(group)}


def rounded(capacity: int) -> int:
    """Tokens that a cache for `capacity` of them has room for: whole granules."""
    return capacity + -capacity % GRANULE


def loaded(tensors: Iterable[TensorInfo], layers: int) -> list[TensorInfo]:
    """The tensors that a target of `layers` blocks multiplies with or adds, without the table of its tokens.

    Without a head of its own a model has a copy of that table as its head. Blocks after the trunk (multi-token
    prediction) are not loaded.
    """
    infos = {info.name: info for info in tensors}
    own_head = HEAD in infos
    return [info for name, info in infos.items() if not (name == TABLE and own_head) and _in_trunk(name, layers)]


def _in_trunk(name: str, layers: int) -> bool:
    parts = name.split(".")
    return parts[0] != "blk" or int(parts[1]) < layers


def is_matrix(info: TensorInfo) -> bool:
    """Whether a tensor is multiplied with. A convolution has two axes as well, but a few taps only."""
    return len(info.shape) > 1 and not info.name.endswith(CONVOLUTION)


def projections(matrices: Iterable[TensorInfo]) -> Iterator[list[TensorInfo]]:
    """Matrices as they are multiplied: those of a block with one input together, in order (`Weights.projection`)."""
    groups: dict[tuple[str, str], list[tuple[int, TensorInfo]]] = {}
    for info in matrices:
        at, stem = _place(info)
        first, order = _PLACES.get(stem, (stem, 0))
        groups.setdefault((at, first), []).append((order, info))
    for members in groups.values():
        yield [info for _, info in sorted(members, key=itemgetter(0))]


def joined(matrices: Iterable[TensorInfo]) -> Iterator[list[TensorInfo]]:
    """Matrices as they are stored: neighbours with one input and one block type are one (`Weights.load`)."""
    for group in projections(matrices):
        yield from _runs(group)


def _place(info: TensorInfo) -> tuple[str, str]:
    """The block that a matrix belongs to and its name there."""
    at, _, stem = info.name.removesuffix(".weight").rpartition(".")
    return at, stem


def _runs(matrices: Iterable[TensorInfo]) -> Iterator[list[TensorInfo]]:
    for _, members in groupby(matrices, key=lambda info: info.block_type):
        yield list(members)


def weight_buffers(tensors: Iterable[TensorInfo], layout: str, layers: int) -> list[BufferSpec]:
    """What is `loaded`, in a layout of `kernels.layouts.WEIGHTS`."""
    return _weights(loaded(tensors, layers), layout)


def _weights(tensors: list[TensorInfo], layout: str) -> list[BufferSpec]:
    dense = [kernels.dense_buffer(info) for info in tensors if not is_matrix(info)]
    runs = joined(info for info in tensors if is_matrix(info))
    return dense + [buffer for run in runs for buffer in kernels.matrix_buffers(run, layout)]


def draft_weight_buffers(tensors: Iterable[TensorInfo], layout: str) -> list[BufferSpec]:
    """A draft's tensors in a layout of `kernels.layouts.WEIGHTS`; its own token table stays in the bytes of its file.

    The K and V matrices of all layers are there twice: one product makes the context's rows of every layer.
    """
    infos = list(tensors)
    own = [info for info in infos if info.name != TABLE]
    context = [info for stem in ("attn_k", "attn_v") for info in own if is_matrix(info) and _place(info)[1] == stem]
    table = table_buffer(infos)
    return [
        *([] if table is None else [table]),
        *_weights(own, layout),
        *(buffer for run in _runs(context) for buffer in kernels.matrix_buffers(run, layout)),
    ]


def table_buffer(tensors: Iterable[TensorInfo]) -> BufferSpec | None:
    """The table that tokens are looked up in, in the bytes of its file; None for a draft that borrows one."""
    info = next((info for info in tensors if info.name == TABLE), None)
    if info is None:
        return None
    rows = info.shape[0]
    return BufferSpec(TABLE, (rows, info.nbytes // rows), "uint8", "model")


def cache_buffers(spec: ModelSpec, kv: tuple[KVSpec, KVSpec], capacity: int) -> list[BufferSpec]:
    """K and V of all attention layers for `capacity` tokens, and the token ids."""
    tokens = rounded(capacity)
    layer = kv_buffers(kv, spec.kv_heads, spec.head_dim, plane_rows(tokens))
    return [token_buffer(tokens), *layer * sum(spec.attention)]


def state_buffers(spec: ModelSpec) -> list[BufferSpec]:
    """The recurrent states of all gated delta net layers."""
    delta = spec.delta
    if delta is None:
        return []
    layer = recurrent_buffers(delta.value_heads, delta.state_dim, delta.state_dim, delta.channels, delta.taps)
    return layer * (spec.layers - sum(spec.attention))


def replay_buffers(spec: ModelSpec, rows: int = MAX_ROWS, tape: str = "bfloat16") -> list[BufferSpec]:
    """The replay tapes of all gated delta net layers, each with its convolution's window before its `rows` rows.

    tape: float32 in float32 mode.
    """
    delta = spec.delta
    if delta is None:
        return []
    layer = tape_buffers(rows, delta.value_heads, delta.channels, tape, delta.taps - 1)
    return layer * (spec.layers - sum(spec.attention))


def draft_cache_buffers(spec: DraftSpec, kv: tuple[KVSpec, KVSpec], capacity: int) -> list[BufferSpec]:
    """K and V of all draft layers; a sliding layer keeps its window."""
    tokens = rounded(capacity)
    return [
        buffer
        for window in spec.windows
        for buffer in kv_buffers(kv, spec.kv_heads, spec.head_dim, plane_rows(tokens, window))
    ]


def feature_buffers(hidden: int, taps: int, rows: int) -> list[BufferSpec]:
    """The tapped layers' outputs of a decode pass [R, taps * E] and of a prefill pass [T, taps * E]."""
    if not taps:
        return []
    return [
        BufferSpec("features", (rows, taps * hidden), "float32", "pass"),
        BufferSpec("prompt features", (PASS_TOKENS, taps * hidden), "float32", "pass"),
    ]
