"""A target of full-attention layers, dequantised, over batches.

In bfloat16 with a float32 residual stream on a GPU, float32 on a CPU. The weights are those of the served file, so
its text and features are what a served draft will meet; only the rounding differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from draftwood.formats.gguf import GGUFFile
from draftwood.kernels.batched_attention import attend_rows
from draftwood.layers.weights import Weights
from draftwood.models.registry import architecture
from draftwood.training.draft_net import rms, turn, turn_tables
from draftwood.training.masks import realisation_for
from draftwood.training.packing import Rows
from draftwood.training.teachers import base


@dataclass(frozen=True)
class _Layer:
    """Matrices [out, in] in the compute dtype, norms float32. qk_norm: [2, D], None where the model has none."""

    attention_norm: Tensor
    qkv: Tensor
    qk_norm: Tensor | None
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class _Sizes:
    heads: int
    kv_heads: int
    head_dim: int
    rope_width: int
    eps: float


def can_teach(source: GGUFFile) -> bool:
    """Whether every layer is plain attention with rotary positions over a SiLU-gated network."""
    spec = architecture(source).read_spec(source)
    return all(spec.attention) and not spec.gated and "rope_freqs.weight" not in source.tensors


def open_teacher(source: GGUFFile, device: str) -> Teacher:
    """Load all weights of a file."""
    return Teacher(source, device)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
    if width == x.shape[-1]:
        return turn(x, cos, sin)
    return torch.cat((turn(x[..., :width], cos, sin), x[..., width:].float()), -1)


def _enter(x: Tensor, layer: _Layer, sizes: _Sizes, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x float32 [..., E] -> rotated queries [..., H, D], rotated keys and values [..., G, D] in the compute dtype."""
    kind = layer.qkv.dtype
    rows = rms(x, layer.attention_norm, sizes.eps).to(kind) @ layer.qkv.T
    heads = rows.unflatten(-1, (-1, sizes.head_dim))
    q, k, v = heads.split([sizes.heads, sizes.kv_heads, sizes.kv_heads], -2)
    if layer.qk_norm is not None:
        q, k = rms(q, layer.qk_norm[0], sizes.eps), rms(k, layer.qk_norm[1], sizes.eps)
    q, k = _rotate(q, cos, sin, sizes.rope_width), _rotate(k, cos, sin, sizes.rope_width)
    return q.to(kind), k.to(kind), v


def _leave(x: Tensor, mixed: Tensor, layer: _Layer, sizes: _Sizes) -> Tensor:
    """The rest of a layer: x float32 [..., E], mixed [..., H * D] -> float32 [..., E]."""
    kind = layer.out.dtype
    x = x + mixed @ layer.out.T
    gate, up = (rms(x, layer.mlp_norm, sizes.eps).to(kind) @ layer.gate_up.T).chunk(2, -1)
    return x + (functional.silu(gate) * up) @ layer.down.T


def _read_layer(
    x: Tensor, layer: _Layer, sizes: _Sizes, cos: Tensor, sin: Tensor, attend: Callable[..., Tensor], mask: Any
) -> Tensor:
    q, k, v = (part.transpose(1, 2).contiguous() for part in _enter(x, layer, sizes, cos, sin))
    return _leave(x, attend(q, k, v, mask).transpose(1, 2).flatten(2), layer, sizes)


class Teacher(base.Teacher):
    """All weights of a file on one device."""

    def __init__(self, source: GGUFFile, device: str) -> None:
        module = architecture(source)
        self.spec = spec = module.read_spec(source)
        self.device = device
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._realisation = realisation_for(device)
        self._sizes = _Sizes(spec.heads, spec.kv_heads, spec.head_dim, spec.rope_width, spec.eps)
        self._weights = Weights(source, device, "float32")
        self.embedding = self._matrix("token_embd", spec.vocab, spec.hidden)
        self.head = self._matrix("output", spec.vocab, spec.hidden) if self._has("output") else self.embedding
        self._output_norm = self._weights.dense("output_norm.weight", (spec.hidden,))
        self._layers = [self._layer(i) for i in range(spec.layers)]
        self._turns = turn_tables(0, spec.rope_width, spec.rope_base, device)
        self._read_layer: Callable[..., Tensor] = _read_layer

    def _has(self, name: str) -> bool:
        return self._weights.has(f"{name}.weight")

    def _matrix(self, name: str, rows: int, width: int) -> Tensor:
        return self._weights.dense(f"{name}.weight", (rows, width)).to(self.dtype)

    def _layer(self, index: int) -> _Layer:
        spec, at = self.spec, f"blk.{index}"
        width = spec.kv_heads * spec.head_dim
        norms = None
        if self._has(f"{at}.attn_q_norm"):
            norms = torch.stack(
                [self._weights.dense(f"{at}.attn_{axis}_norm.weight", (spec.head_dim,)) for axis in "qk"]
            )
        qkv = [
            self._halves(self._matrix(f"{at}.attn_q", spec.query_width, spec.hidden)),
            self._halves(self._matrix(f"{at}.attn_k", width, spec.hidden)),
            self._matrix(f"{at}.attn_v", width, spec.hidden),
        ]
        gate_up = [self._matrix(f"{at}.ffn_{name}", spec.ffn, spec.hidden) for name in ("gate", "up")]
        return _Layer(
            self._weights.dense(f"{at}.attn_norm.weight", (spec.hidden,)),
            torch.cat(qkv),
            norms,
            self._matrix(f"{at}.attn_output", spec.hidden, spec.heads * spec.head_dim),
            self._weights.dense(f"{at}.ffn_norm.weight", (spec.hidden,)),
            torch.cat(gate_up),
            self._matrix(f"{at}.ffn_down", spec.hidden, spec.ffn),
        )

    def _halves(self, matrix: Tensor) -> Tensor:
        """Rows of every head reordered so that rotated pairs are (i, i + width/2); scores do not notice."""
        if self.spec.pairing == "halves":
            return matrix
        heads = matrix.unflatten(0, (-1, self.spec.head_dim))
        turned = heads[:, : self.spec.rope_width].unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        return torch.cat((turned, heads[:, self.spec.rope_width :]), 1).flatten(0, 1)

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin at int64 positions, float32 [..., rope width / 2]."""
        cos, sin = self._turns
        return cos[positions], sin[positions]

    def reserve(self, positions: int) -> None:
        """Make the rotary tables at least this long."""
        if len(self._turns[0]) < positions:
            self._turns = turn_tables(positions, self.spec.rope_width, self.spec.rope_base, self.device)

    def compile(self) -> None:
        """Compile a layer's reading, once for all layers."""
        self._read_layer = torch.compile(_read_layer, dynamic=False)

    @torch.no_grad()
    def read(self, rows: Rows, taps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """See `base.Teacher`."""
        self.reserve(rows.tokens.shape[1])
        cos, sin = self.turns(rows.positions)
        mask = self._realisation.documents(rows.start)
        x = self.embedding[rows.tokens].float()
        tapped = {}
        for index, layer in enumerate(self._layers):
            x = self._read_layer(x, layer, self._sizes, cos, sin, self._realisation.attend, mask)
            if index in taps:
                tapped[index] = x.to(self.dtype)
        hidden = rms(x, self._output_norm, self.spec.eps).to(self.dtype)
        return torch.cat([tapped[tap] for tap in taps], -1), hidden

    def decoder(self, sequences: int, capacity: int) -> BatchDecoder:
        """See `base.Teacher`."""
        self.reserve(capacity)
        return BatchDecoder(self, sequences, capacity)


class BatchDecoder(base.BatchDecoder):
    """Static caches [L, N, G, S, D]; on a GPU a step is one captured graph."""

    def __init__(self, teacher: Teacher, sequences: int, capacity: int) -> None:
        self._teacher, spec = teacher, teacher.spec
        shape = (spec.layers, sequences, spec.kv_heads, capacity, spec.head_dim)
        self._keys = torch.zeros(shape, dtype=teacher.dtype, device=teacher.device)
        self._values = torch.zeros_like(self._keys)
        self._rows = torch.arange(sequences, device=teacher.device)
        compiled = teacher.device == "cuda"
        self._enter = torch.compile(_enter, dynamic=False) if compiled else _enter
        self._leave = torch.compile(_leave, dynamic=False) if compiled else _leave

    @torch.no_grad()
    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See `base.BatchDecoder`."""
        teacher = self._teacher
        sizes, scale = teacher._sizes, teacher.spec.head_dim**-0.5
        cos, sin = teacher.turns(positions)
        lengths = (positions + 1).to(torch.int32)
        x = teacher.embedding[tokens].float()
        for index, layer in enumerate(teacher._layers):
            q, k, v = self._enter(x, layer, sizes, cos, sin)
            self._keys[index, self._rows, :, positions] = k
            self._values[index, self._rows, :, positions] = v
            mixed = attend_rows(q, self._keys[index], self._values[index], lengths, scale)
            x = self._leave(x, mixed.flatten(1), layer, sizes)
        return rms(x, teacher._output_norm, teacher.spec.eps).to(teacher.dtype) @ teacher.head.T
