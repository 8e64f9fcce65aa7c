"""Activations and scratch of a round and of a prefill pass on a GPU, moment by moment. Torch-free.

Rounds are captured graphs with a pool of their own, so what they use and what a prefill pass uses are added. Within
each the most is taken that is alive at one moment. Left out are the features, which `buffers` has, and what takes less
than a hundredth: positions, rotations, trees, candidates.

Letters: E hidden width, R rows of a decode pass, T tokens of a prefill pass, B rows of a draft block.
"""

from __future__ import annotations

from functools import cache

from draftwood.batch import MAX_ROWS, PASS_TOKENS
from draftwood.buffers import BufferSpec, largest
from draftwood.cache.buffers import plane_rows
from draftwood.cache.spec import KVSpec
from draftwood.kernels import buffers as kernels
from draftwood.models.buffers import rounded
from draftwood.models.draft_spec import DraftSpec
from draftwood.models.spec import DeltaSpec, ModelSpec

PROJECTED = 512
"""Rows of a prompt's features that a draft projects at a time."""

HALVES = "f16"
"""The KV type whose rows prefill attention reads as they are."""

Moment = list[BufferSpec]
"""What is alive at once."""


def pass_buffers(
    spec: ModelSpec,
    kv: tuple[KVSpec, KVSpec],
    capacity: int,
    rows: int = MAX_ROWS,
    draft: DraftSpec | None = None,
    tokens: int = PASS_TOKENS,
) -> list[BufferSpec]:
    """All of it, for a context of `capacity` tokens and passes of `rows` and `tokens` rows."""
    shared = [] if spec.delta is None else [_branch_states(spec.delta)]
    return [*shared, *round_buffers(spec, capacity, rows, draft), *prefill_buffers(spec, kv, capacity, draft, tokens)]


def _branch_states(delta: DeltaSpec) -> BufferSpec:
    """They are made for the largest tree, whatever the budget."""
    return kernels.branch_states(MAX_ROWS, delta.value_heads, delta.state_dim, delta.state_dim)


def round_buffers(spec: ModelSpec, capacity: int, rows: int, draft: DraftSpec | None) -> Moment:
    """A draft block, the pass that verifies its tree, and what is kept."""
    moments = [_tree_attention(spec, capacity, rows)]
    if draft is not None:
        moments.append(_block_attention(draft, capacity))
    return list(largest(_round_of_any_context(spec, rows, draft), *moments))


@cache
def _round_of_any_context(spec: ModelSpec, rows: int, draft: DraftSpec | None) -> Moment:
    """The largest moment of a round whose bytes no context changes."""
    width = spec.heads * spec.head_dim
    qkv, turned = _attention_inputs(spec, rows)
    moments = [
        [qkv, kernels.parts(rows, qkv.shape[1], spec.hidden)],
        [qkv, turned, *kernels.operand(rows, width), kernels.parts(rows, spec.hidden, width)],
        *_feed_forward(rows, spec.hidden, spec.ffn),
        [kernels.parts(rows, spec.vocab, spec.hidden), _float("logits", rows, spec.vocab)],
    ]
    if spec.delta is not None:
        delta, width = spec.delta, spec.delta.value_width
        inputs = _float("delta inputs", rows, _delta_inputs(delta))
        moments += [
            [inputs, kernels.parts(rows, inputs.shape[1], spec.hidden)],
            [inputs, *kernels.tree_rule(rows, delta.key_heads, delta.value_heads, delta.state_dim, delta.state_dim)],
            [inputs, *kernels.operand(rows, width), kernels.parts(rows, spec.hidden, width)],
        ]
    moments = [_stream(spec, rows) + moment for moment in moments]
    if draft is not None:
        moments += [*_block(spec, draft), _kept_features(spec, draft, rows)]
    return list(largest(*moments))


def _tree_attention(spec: ModelSpec, capacity: int, rows: int) -> Moment:
    width = spec.heads * spec.head_dim
    states = kernels.tree_attention(rows, spec.heads, spec.kv_heads, spec.head_dim, rounded(capacity))
    around = [*_attention_inputs(spec, rows), _float("queries", rows, width)]
    return [*_stream(spec, rows), *around, *states, _float("attended", rows, width)]


def _attention_inputs(spec: ModelSpec, rows: int) -> Moment:
    return [
        _float("query, key, value", rows, spec.query_width + 2 * spec.kv_heads * spec.head_dim),
        _float("rotated", rows, (spec.heads + spec.kv_heads) * spec.head_dim),
    ]


def _stream(spec: ModelSpec, rows: int) -> Moment:
    return [_float("residual", rows, spec.hidden), *kernels.operand(rows, spec.hidden)]


def _feed_forward(rows: int, hidden: int, ffn: int) -> list[Moment]:
    gated = kernels.operand(rows, ffn)
    return [[kernels.parts(rows, 2 * ffn, hidden), *gated], [*gated, kernels.parts(rows, hidden, ffn)]]


def _block(spec: ModelSpec, draft: DraftSpec) -> list[Moment]:
    """A draft block but for its attention; its logits come from the target's head, its own or a shortlist."""
    rows = draft.block_size
    qkv, _ = _block_inputs(draft)
    vocab = spec.vocab if draft.shortlist is None else len(draft.shortlist)
    moments = [
        [qkv, kernels.parts(rows, qkv.shape[1], draft.hidden)],
        *_feed_forward(rows, draft.hidden, draft.ffn),
        [kernels.parts(rows - 1, vocab, draft.hidden), _float("draft logits", rows - 1, vocab)],
    ]
    return [_block_stream(draft) + moment for moment in moments]


def _block_attention(draft: DraftSpec, capacity: int) -> Moment:
    kept = max(plane_rows(rounded(capacity), window) for window in draft.windows)
    scratch = kernels.block_attention(draft.block_size, draft.heads, draft.kv_heads, draft.head_dim, kept)
    return [*_block_stream(draft), *_block_inputs(draft), *scratch]


def _block_inputs(draft: DraftSpec) -> Moment:
    rows, width, keys = draft.block_size, draft.heads * draft.head_dim, draft.kv_heads * draft.head_dim
    return [_float("query, key, value", rows, width + 2 * keys), _float("rotated", rows, 2 * width + keys)]


def _block_stream(draft: DraftSpec) -> Moment:
    rows = draft.block_size
    return [_float("block", rows, draft.hidden), *kernels.operand(rows, draft.hidden)]


def _kept_features(spec: ModelSpec, draft: DraftSpec, rows: int) -> Moment:
    """Of the accepted path: its features, taken and clipped, on their way into the draft."""
    count, width = min(rows, draft.block_size), len(draft.taps) * spec.hidden
    copies = [_float("path features", count, width), _float("clipped features", count, width)]
    return [*copies, *kernels.operand(count, width), kernels.parts(count, draft.hidden, width)]


def prefill_buffers(
    spec: ModelSpec, kv: tuple[KVSpec, KVSpec], capacity: int, draft: DraftSpec | None, tokens: int
) -> Moment:
    """A pass over a prompt, and a draft that takes its features in."""
    width, expanded = spec.heads * spec.head_dim, sum(kind.name != HALVES for kind in kv)
    qkv, turned = _prompt_attention_inputs(spec, tokens)
    scratch = kernels.granule_attention(tokens, spec.heads, spec.kv_heads, spec.head_dim, rounded(capacity), expanded)
    attention = [qkv, turned, _float("queries", tokens, width), *scratch]
    moment = largest(_prefill_of_any_context(spec, draft, tokens), attention)
    return [_float("prompt residual", tokens, spec.hidden), _float("normed", tokens, spec.hidden), *moment]


def _prompt_attention_inputs(spec: ModelSpec, tokens: int) -> Moment:
    keys = spec.kv_heads * spec.head_dim
    return [
        _float("query, key, value", tokens, spec.query_width + 2 * keys),
        _float("rotated", tokens, spec.heads * spec.head_dim + keys),
    ]


@cache
def _prefill_of_any_context(spec: ModelSpec, draft: DraftSpec | None, tokens: int) -> Moment:
    """The largest moment of such a pass whose bytes no context changes, without the residual and its norm."""
    width = spec.heads * spec.head_dim
    qkv, turned = _prompt_attention_inputs(spec, tokens)
    mixed, gate, gated = (_float(name, tokens, width) for name in ("mixed", "gate", "gated"))
    gating = [gate, gated] if spec.gated else []
    moments = [
        kernels.prefill_product(tokens, qkv.shape[1], spec.hidden),
        [qkv, turned, mixed, *gating, *kernels.prefill_product(tokens, spec.hidden, width)],
        kernels.prefill_product(tokens, 2 * spec.ffn, spec.hidden),
        [_float("gate and up", tokens, 2 * spec.ffn), _float("gated", tokens, spec.ffn)],
        [_float("gated", tokens, spec.ffn), *kernels.prefill_product(tokens, spec.hidden, spec.ffn)],
    ]
    if spec.delta is not None:
        delta, sizes = spec.delta, (spec.delta.state_dim, spec.delta.state_dim)
        inputs, normed = (
            _float("delta inputs", tokens, _delta_inputs(delta)),
            _float("gated", tokens, delta.value_width),
        )
        moments += [
            kernels.prefill_product(tokens, inputs.shape[1], spec.hidden),
            [inputs, *kernels.chunk_buffers(tokens, delta.key_heads, delta.value_heads, *sizes)],
            [inputs, normed, *kernels.prefill_product(tokens, spec.hidden, delta.value_width)],
        ]
    if draft is not None:
        moments += _prompt_features(spec, draft)
    return list(largest(*moments))


def _prompt_features(spec: ModelSpec, draft: DraftSpec) -> list[Moment]:
    """Some rows of a prompt's features, padded and clipped, on their way into the draft; then keys and values of all
    its layers from them, the keys normed and rotated step by step."""
    width, keys = len(draft.taps) * spec.hidden, draft.layers * draft.kv_heads * draft.head_dim
    padded = _float("padded features", PROJECTED, width)
    clipped = _float("clipped features", PROJECTED, width)
    context = _float("context", PROJECTED, draft.hidden), _float("keys, values", PROJECTED, 2 * keys)
    return [
        [padded, clipped, *kernels.prefill_product(PROJECTED, draft.hidden, width)],
        [padded, *context, _float("keys", PROJECTED, 4 * keys)],
    ]


def _delta_inputs(delta: DeltaSpec) -> int:
    """Outputs of a gated delta net's input matrices."""
    return delta.channels + delta.value_width + 2 * delta.value_heads


def _float(name: str, rows: int, width: int) -> BufferSpec:
    return BufferSpec(name, (rows, width), "float32", "pass")
