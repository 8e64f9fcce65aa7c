"""The buffers of a target and of a draft, layer by layer, from their facts alone. Torch-free.

Letters: E hidden width, F width of the feed-forward network, V vocabulary, R rows of a decode pass, T tokens of a
prefill pass, B rows of a draft block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

from draftwood.batch import GRANULE, MAX_ROWS, PASS_TOKENS
from draftwood.buffers import BufferSpec, largest
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
    """What is `loaded`, in a layout of `kernels.buffers.WEIGHTS`."""
    return _weights(loaded(tensors, layers), layout)


def _weights(tensors: list[TensorInfo], layout: str) -> list[BufferSpec]:
    dense = [kernels.dense_buffer(info) for info in tensors if not is_matrix(info)]
    runs = joined(info for info in tensors if is_matrix(info))
    return dense + [buffer for run in runs for buffer in kernels.matrix_buffers(run, layout)]


def draft_weight_buffers(tensors: Iterable[TensorInfo], layout: str) -> list[BufferSpec]:
    """A draft's tensors in a layout of `kernels.buffers.WEIGHTS`; its own token table stays in the bytes of its file.

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


def replay_buffers(spec: ModelSpec, rows: int, tape: str = "bfloat16") -> list[BufferSpec]:
    """The replay tapes of all gated delta net layers for passes of `rows` rows; `tape` is float32 in float32 mode."""
    delta = spec.delta
    if delta is None:
        return []
    return tape_buffers(rows, delta.value_heads, delta.channels, tape) * (spec.layers - sum(spec.attention))


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
        BufferSpec("prompt features", (PASS_TOKENS, taps * hidden), "float16", "pass", planned=True),
    ]


def logit_buffers(vocab: int, rows: int, draft: DraftSpec | None) -> list[BufferSpec]:
    """Logits of a decode pass [R, V] and of a draft block [B - 1, V]."""
    own = [BufferSpec("logits", (rows, vocab), "float32", "pass")]
    block = [] if draft is None else [BufferSpec("draft logits", (draft.block_size - 1, vocab), "float32", "pass")]
    return own + block


def pass_buffers(spec: ModelSpec, rows: int = MAX_ROWS, tokens: int = PASS_TOKENS) -> list[BufferSpec]:
    """Activations and scratch of a decode pass and of a prefill pass.

    Of a prefill pass's mixer and feed-forward network only one runs at a time.
    """
    mixers = [_attention_pass(spec, tokens)]
    decode = [kernels.partial_sums(rows), kernels.attention_parts(rows, spec.heads, spec.head_dim)]
    if spec.delta is not None:
        delta = spec.delta
        mixers.append(_delta_pass(spec, tokens))
        decode.append(kernels.branch_states(delta.value_heads, delta.state_dim, delta.state_dim))
    widest = max(2 * spec.ffn, spec.query_width, 0 if spec.delta is None else spec.delta.channels)
    return [
        *decode,
        _planned("decode residual", (rows, spec.hidden), "float32"),
        _planned("decode operand", (rows, max(spec.ffn, spec.hidden, spec.heads * spec.head_dim)), "float16"),
        _planned("decode product", (rows, widest), "float32"),
        _planned("prefill residual", (tokens, spec.hidden), "float32"),
        _planned("prefill operand", (tokens, max(spec.ffn, spec.hidden, spec.heads * spec.head_dim)), "float16"),
        *largest(*mixers, [_planned("gate and up", (tokens, 2 * spec.ffn), "bfloat16")]),
    ]


def _attention_pass(spec: ModelSpec, tokens: int) -> list[BufferSpec]:
    width = spec.query_width + 2 * spec.kv_heads * spec.head_dim
    return [
        _planned("query, key, value", (tokens, width), "bfloat16"),
        _planned("attended", (tokens, spec.heads * spec.head_dim), "float32"),
    ]


def _delta_pass(spec: ModelSpec, tokens: int) -> list[BufferSpec]:
    delta = spec.delta
    if delta is None:
        return []
    return [
        _planned("raw projection", (tokens, delta.channels), "bfloat16"),
        _planned("convolved", (tokens, delta.channels), "bfloat16"),
        _planned("output gate", (tokens, delta.value_width), "bfloat16"),
        _planned("decay and beta", (tokens, 2, delta.value_heads), "float32"),
        _planned("mixed", (tokens, delta.value_width), "float32"),
        *kernels.chunk_buffers(tokens, delta.value_heads, delta.state_dim, delta.state_dim),
    ]


def _planned(name: str, shape: tuple[int, ...], dtype: str) -> BufferSpec:
    return BufferSpec(name, shape, dtype, "pass", planned=True)
