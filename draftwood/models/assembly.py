"""Pieces that the architectures put together: the parts whose tensor names they share."""

from __future__ import annotations

from collections.abc import Callable

from draftwood.cache.kv import KVState
from draftwood.cache.spec import KVSpec
from draftwood.cache.states import kv_state
from draftwood.kernels.activation import load_silu_gate
from draftwood.kernels.rope import frequencies
from draftwood.layers.attention import Attention
from draftwood.layers.linear import Linear
from draftwood.layers.mlp import MLP
from draftwood.layers.weights import Weights
from draftwood.models.base import Block, Model, StateMaker
from draftwood.models.spec import ModelSpec


def mlp(spec: ModelSpec, weights: Weights, at: str) -> MLP:
    """The feed-forward network of block `at`."""
    return MLP(
        weights.projection([(f"{at}.ffn_gate", spec.ffn), (f"{at}.ffn_up", spec.ffn)], spec.hidden),
        weights.linear(f"{at}.ffn_down", spec.hidden, spec.ffn),
        load_silu_gate(weights.device),
    )


def attention(spec: ModelSpec, weights: Weights, at: str, qk_norm: bool) -> Attention:
    """The full attention of block `at`."""
    width = spec.kv_heads * spec.head_dim
    norms = (
        [weights.dense(f"{at}.attn_{axis}_norm.weight", (spec.head_dim,)) for axis in "qk"] if qk_norm else [None, None]
    )
    return Attention(
        weights.projection(
            [(f"{at}.attn_q", spec.query_width), (f"{at}.attn_k", width), (f"{at}.attn_v", width)],
            spec.hidden,
        ),
        weights.linear(f"{at}.attn_output", spec.hidden, spec.heads * spec.head_dim),
        spec.heads,
        spec.kv_heads,
        spec.head_dim,
        spec.pairing,
        spec.eps,
        spec.gated,
        norms[0],
        norms[1],
        weights.device,
    )


def attention_state(spec: ModelSpec, weights: Weights) -> StateMaker:
    """Makes the KV cache of one attention layer."""

    def make(kv: tuple[KVSpec, KVSpec], capacity: int) -> KVState:
        return kv_state(kv, spec.kv_heads, spec.head_dim, capacity, weights.device, weights.dtype)

    return make


def assemble(spec: ModelSpec, weights: Weights, block: Callable[[int], Block]) -> Model:
    """Embedding, the blocks, output norm and head; without `output.weight` the head is the token table."""
    divisors = (
        weights.dense("rope_freqs.weight", (spec.rope_width // 2,)).cpu() if weights.has("rope_freqs.weight") else None
    )
    # The largest come first, while there is most room for their bytes beside what is made of them.
    table = weights.embedding("token_embd.weight", spec.vocab, spec.hidden)
    head = weights.stored("output" if weights.has("output.weight") else "token_embd", spec.vocab, spec.hidden)
    matrix = Linear(weights.load([head]))
    return Model(
        spec,
        table,
        [block(i) for i in range(spec.layers)],
        weights.dense("output_norm.weight", (spec.hidden,)),
        matrix,
        head,
        frequencies(spec.rope_width, spec.rope_base, divisors).to(weights.device),
        weights.operands,
    )


def transformer(spec: ModelSpec, weights: Weights, qk_norm: bool) -> Model:
    """A model of full attention layers only, with the tensor names of llama.cpp."""

    def block(i: int) -> Block:
        at = f"blk.{i}"
        return Block(
            weights.dense(f"{at}.attn_norm.weight", (spec.hidden,)),
            attention(spec, weights, at, qk_norm),
            weights.dense(f"{at}.ffn_norm.weight", (spec.hidden,)),
            mlp(spec, weights, at),
            attention_state(spec, weights),
        )

    return assemble(spec, weights, block)
