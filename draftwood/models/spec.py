"""The facts of a model, read from its metadata (torch-free: the planner reads them on a laptop)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from draftwood.errors import FormatError
from draftwood.formats.header import ModelHeader


@dataclass(frozen=True)
class DeltaSpec:
    """Sizes of the gated delta net layers; taps: of their convolution."""

    key_heads: int
    value_heads: int
    state_dim: int
    taps: int = 4

    @property
    def value_width(self) -> int:
        """Width of all value heads together."""
        return self.value_heads * self.state_dim

    @property
    def channels(self) -> int:
        """Width of the raw qkv projection."""
        return 2 * self.key_heads * self.state_dim + self.value_width


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only target.

    attention: per layer, True for full attention, False for a gated delta net. pairing: see kernels.rope.
    gated: the query matrix also yields an output gate. rope_width: rotated dims of a head.
    """

    architecture: str
    layers: int
    hidden: int
    ffn: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope_width: int
    rope_base: float
    pairing: str
    context_length: int
    attention: tuple[bool, ...]
    gated: bool = False
    delta: DeltaSpec | None = None

    @property
    def query_width(self) -> int:
        """Rows of the query matrix."""
        return self.heads * self.head_dim * (2 if self.gated else 1)


class Keys:
    """Typed access to the metadata of one architecture: `integer("block_count")` reads `<arch>.block_count`."""

    def __init__(self, source: ModelHeader, prefix: str | None = None) -> None:
        self.source = source
        self.prefix = f"{source.architecture}." if prefix is None else prefix

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = 1 << 24) -> int:
        """A whole number in low..high; a FormatError says what was found."""
        value = self.source.get(self.prefix + key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise FormatError(
                f"{self.source.path.name}: {self.prefix}{key} is {value!r:.40}, "
                f"a whole number from {low} to {high} was expected; the file is damaged or incomplete."
            )
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A finite positive number."""
        value = self.source.get(self.prefix + key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise FormatError(
                f"{self.source.path.name}: {self.prefix}{key} is {value!r:.40}, a positive number was expected; "
                "the file is damaged or incomplete."
            )
        return float(value)

    def fail(self, sentence: str) -> FormatError:
        """A FormatError about this file."""
        return FormatError(f"{self.source.path.name}: {sentence}")


def vocabulary_rows(source: ModelHeader, hidden: int) -> int:
    """Rows of the token table, the size of the vocabulary."""
    info = source.tensors.get("token_embd.weight")
    if info is None or len(info.shape) != 2 or info.shape[1] != hidden:
        found = "missing" if info is None else f"of shape {tuple(info.shape)}"
        raise FormatError(
            f"{source.path.name}: token_embd.weight is {found}, rows of {hidden} values were expected; "
            "this is not a complete model file."
        )
    return info.shape[0]


def transformer_spec(source: ModelHeader, pairing: str) -> ModelSpec:
    """The keys that llama-like architectures share (SPEC-llama; SPEC-qwen35 3.4)."""
    keys = Keys(source)
    layers, hidden, heads = (
        keys.integer("block_count", high=4096),
        keys.integer("embedding_length"),
        keys.integer("attention.head_count"),
    )
    kv_heads = keys.integer("attention.head_count_kv", default=heads)
    head_dim = keys.integer("attention.key_length", default=max(1, hidden // heads))
    rope_width = keys.integer("rope.dimension_count", default=head_dim)
    if heads % kv_heads:
        raise keys.fail(f"{heads} query heads cannot share {kv_heads} KV heads; the file is damaged.")
    if keys.integer("attention.value_length", default=head_dim) != head_dim:
        raise keys.fail("keys and values of different width are not supported.")
    if rope_width % 2 or rope_width > head_dim:
        raise keys.fail(f"{rope_width} rotated dims do not fit a head of {head_dim}; the file is damaged.")
    return ModelSpec(
        architecture=source.architecture,
        layers=layers,
        hidden=hidden,
        ffn=keys.integer("feed_forward_length"),
        vocab=vocabulary_rows(source, hidden),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        eps=keys.real("attention.layer_norm_rms_epsilon"),
        rope_width=rope_width,
        rope_base=keys.real("rope.freq_base", default=10000.0),
        pairing=pairing,
        context_length=keys.integer("context_length", default=4096, high=1 << 30),
        attention=(True,) * layers,
    )
