"""The hybrid `qwen35` architecture of Qwen3.5 and 3.6 (SPEC-qwen35): three gated delta nets to one gated attention.

Importing this does not import torch.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from draftwood.errors import UnsupportedModelError
from draftwood.formats.header import ModelHeader
from draftwood.models.spec import DeltaSpec, Keys, ModelSpec, transformer_spec

if TYPE_CHECKING:
    from draftwood.layers.attention import Attention
    from draftwood.layers.delta_net import DeltaNet
    from draftwood.layers.weights import Weights
    from draftwood.models.base import Block, Model, StateMaker

CONV_TAPS = 4


def read_spec(source: ModelHeader) -> ModelSpec:
    """The model's facts; blocks of the multi-token-prediction head at the end are not part of the trunk."""
    if source.get("qwen35.ssm.v_head_reordered") is False:
        raise UnsupportedModelError(
            f"{source.path.name}: its value heads are in grouped order; convert it again with a current converter."
        )
    head_counts = source.get("qwen35.attention.head_count_kv")
    if isinstance(head_counts, list):
        raise UnsupportedModelError(
            f"{source.path.name}: KV head counts per layer are a dialect draftwood does not read; use a llama.cpp GGUF."
        )
    keys = Keys(source)
    base = transformer_spec(source, pairing="halves")
    layers = base.layers - keys.integer("nextn_predict_layers", default=0, low=0)
    interval = keys.integer("full_attention_interval", default=4)
    key_heads, value_heads, width = (
        keys.integer("ssm.group_count"),
        keys.integer("ssm.time_step_rank"),
        keys.integer("ssm.state_size"),
    )
    if layers < 1:
        raise keys.fail(f"{base.layers} blocks leave no trunk; the file is damaged.")
    if value_heads % key_heads or keys.integer("ssm.inner_size") != value_heads * width:
        raise keys.fail(
            f"{value_heads} value heads of {width} do not fit {key_heads} key heads "
            f"and an inner size of {keys.integer('ssm.inner_size')}."
        )
    if keys.integer("ssm.conv_kernel") != CONV_TAPS:
        raise keys.fail(
            f"a convolution of {keys.integer('ssm.conv_kernel')} taps was found, {CONV_TAPS} are supported."
        )
    return dataclasses.replace(
        base,
        layers=layers,
        attention=tuple((i + 1) % interval == 0 for i in range(layers)),
        gated=True,
        delta=DeltaSpec(key_heads, value_heads, width),
    )


def build(spec: ModelSpec, weights: Weights) -> Model:
    """The model on the weights' device."""
    from draftwood.models.assembly import assemble, attention, attention_state, mlp
    from draftwood.models.base import Block

    def block(i: int) -> Block:
        at = f"blk.{i}"
        mixer: Attention | DeltaNet
        if spec.attention[i]:
            mixer, state = attention(spec, weights, at, qk_norm=True), attention_state(spec, weights)
        else:
            mixer, state = _delta_net(spec, weights, at)
        return Block(
            weights.dense(f"{at}.attn_norm.weight", (spec.hidden,)),
            mixer,
            weights.dense(f"{at}.post_attention_norm.weight", (spec.hidden,)),
            mlp(spec, weights, at),
            state,
        )

    return assemble(spec, weights, block)


def _delta_net(spec: ModelSpec, weights: Weights, at: str) -> tuple[DeltaNet, StateMaker]:
    """The gated delta net of block `at`, and what makes its state."""
    import torch

    from draftwood.cache.base import LayerState
    from draftwood.cache.recurrent import DeltaWeights
    from draftwood.cache.spec import KVSpec
    from draftwood.cache.states import recurrent_state
    from draftwood.kernels.delta_rule import DeltaShape
    from draftwood.layers.delta_net import DeltaNet

    delta = spec.delta
    if delta is None:
        raise ValueError("a hybrid model has delta net sizes")
    shape = DeltaShape(delta.key_heads, delta.value_heads, delta.state_dim, delta.state_dim, spec.eps)
    heads, channels, width = delta.value_heads, delta.channels, delta.value_width
    conv = weights.dense(f"{at}.ssm_conv1d.weight", (channels, CONV_TAPS)).t().contiguous()
    mixer = DeltaNet(
        weights.projection(
            [
                (f"{at}.attn_qkv", channels),
                (f"{at}.attn_gate", width),
                (f"{at}.ssm_beta", heads),
                (f"{at}.ssm_alpha", heads),
            ],
            spec.hidden,
        ),
        weights.linear(f"{at}.ssm_out", spec.hidden, width),
        shape,
        weights.dense(f"{at}.ssm_norm.weight", (delta.state_dim,)),
    )
    recurrence = DeltaWeights(
        conv,
        weights.dense(f"{at}.ssm_a", (heads,)),
        weights.dense(f"{at}.ssm_dt.bias", (heads,)),
        torch.float32 if weights.dtype == "float32" else torch.bfloat16,
    )

    def make(kv: tuple[KVSpec, KVSpec], capacity: int) -> LayerState:
        return recurrent_state(shape, recurrence, weights.device, weights.dtype)

    return mixer, make
