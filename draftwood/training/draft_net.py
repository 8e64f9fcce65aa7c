"""The draft as a torch module: every parameter has the name that its tensor has in a GGUF of arch `dflash`.

Letters: n rows, S context tokens of a row, A anchors, B rows of a block, E hidden width, H and G query and KV heads,
D head width, T taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from draftwood.kernels.rope import frequencies
from draftwood.training.packing import Anchors

Attend = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""See `masks.Realisation`."""


@dataclass(frozen=True)
class DraftShape:
    """Sizes of a draft.

    block: rows of a block. taps: target layers from 0 whose outputs are its features, in order. causal: whether a row
    is kept from the rows of the block after it, in every layer. windows: per layer, how far back a row sees, None for
    everything.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope_base: float
    block: int
    mask_token: int
    taps: tuple[int, ...]
    causal: bool
    windows: tuple[int | None, ...]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x * rsqrt(mean(x^2) + eps) * weight over the last axis, in float32, in steps that a compiler can fuse."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


class Norm(nn.Module):
    """`rms` with a weight that is learnt."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Float32 of the shape of x."""
        return rms(x, self.weight, self.eps)


def turn_tables(positions: int, width: int, base: float, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles, float32 [positions, width / 2], from float64 angles."""
    angles = torch.arange(positions, dtype=torch.float64).unsqueeze(-1) * frequencies(width, base)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + width/2) of x [n, rows, heads, width]; cos, sin [n, rows, width / 2]."""
    a, b = x.float().chunk(2, -1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Layer(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)); context rows give keys and values without a norm."""

    def __init__(self, shape: DraftShape) -> None:
        super().__init__()
        hidden, query, width = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.head_dim = shape.head_dim
        self.attn_norm = Norm(hidden, shape.eps)
        self.attn_q = nn.Linear(hidden, query, bias=False)
        self.attn_k = nn.Linear(hidden, width, bias=False)
        self.attn_v = nn.Linear(hidden, width, bias=False)
        self.attn_q_norm = Norm(shape.head_dim, shape.eps)
        self.attn_k_norm = Norm(shape.head_dim, shape.eps)
        self.attn_output = nn.Linear(query, hidden, bias=False)
        self.ffn_norm = Norm(hidden, shape.eps)
        self.ffn_gate = nn.Linear(hidden, shape.ffn, bias=False)
        self.ffn_up = nn.Linear(hidden, shape.ffn, bias=False)
        self.ffn_down = nn.Linear(shape.ffn, hidden, bias=False)

    def forward(self, x: Tensor, context: Tensor, turns: tuple[Tensor, Tensor], attend: Attend, mask: Any) -> Tensor:
        """x float32 [n, A*B, E], context [n, S, E], turns of all S + A*B keys -> float32 [n, A*B, E]."""
        cos, sin = turns
        length = context.shape[1]
        rows = self.attn_norm(x)
        both = torch.cat((context, rows.to(context.dtype)), 1)

        def heads(y: Tensor) -> Tensor:
            by_head: Tensor = y.unflatten(-1, (-1, self.head_dim))
            return by_head

        k = turn(self.attn_k_norm(heads(self.attn_k(both))), cos, sin)
        q = turn(self.attn_q_norm(heads(self.attn_q(rows))), cos[:, length:], sin[:, length:])
        v = heads(self.attn_v(both))
        kind = v.dtype
        q, k, v = (part.to(kind).transpose(1, 2).contiguous() for part in (q, k, v))
        mixed = attend(q, k, v, mask)
        x = x + self.attn_output(mixed.transpose(1, 2).flatten(2))
        inner = self.ffn_norm(x)
        out: Tensor = x + self.ffn_down(functional.silu(self.ffn_gate(inner)) * self.ffn_up(inner))
        return out


class DraftNet(nn.Module):
    """Replays blocks at many anchors. embedding: the target's token table [V, E], frozen and not a parameter."""

    def __init__(self, shape: DraftShape, embedding: Tensor, positions: int) -> None:
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(len(shape.taps) * shape.hidden, shape.hidden, bias=False)
        self.enc = nn.ModuleDict({"output_norm": Norm(shape.hidden, shape.eps)})
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output_norm = Norm(shape.hidden, shape.eps)
        self._embedding = embedding
        self._turns = turn_tables(positions + shape.block, shape.head_dim, shape.rope_base, embedding.device)
        self._run: Callable[..., Any] = Layer.forward

    def compile_layers(self) -> None:
        """Compile what a layer does, once for all of them."""
        self._run = torch.compile(Layer.forward, dynamic=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Normal 0.02; outputs of a layer / sqrt(2L); fc by its width; norms 1 (SPEC-draft-training section 8)."""
        residual = 0.02 / (2 * self.shape.layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.ones_(parameter)
                continue
            scale = residual if name.endswith(("attn_output.weight", "ffn_down.weight")) else 0.02
            scale = parameter.shape[1] ** -0.5 if name == "fc.weight" else scale
            nn.init.normal_(parameter, std=scale, generator=generator)

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        anchors: Anchors,
        attend: Attend,
        masks: list[Any],
        mask_token: int | None = None,
    ) -> Tensor:
        """Hidden rows after the output norm, float32 [n, A, B, E].

        features: [n, S, T*E]. positions: int64 [n, S]. masks: one per layer. mask_token: another one than the
        draft's own, for a control.
        """
        shape = self.shape
        count, block = anchors.at.shape[1], shape.block
        slots = torch.arange(block, device=features.device)
        at = (anchors.at - anchors.start).unsqueeze(-1) + slots
        where = torch.cat((positions, at.flatten(1)), 1)
        turns = (self._turns[0][where], self._turns[1][where])
        mask = self._embedding[shape.mask_token if mask_token is None else mask_token].float()
        first = self._embedding[anchors.tokens].float().unsqueeze(2)
        x = torch.cat((first, mask.expand(len(features), count, block - 1, -1)), 2).flatten(1, 2)
        context = self.enc["output_norm"](self.fc(features)).to(features.dtype)
        for layer, seen in zip(self.blk, masks, strict=True):
            x = self._run(layer, x, context, turns, attend, seen)
        hidden: Tensor = self.output_norm(x).unflatten(1, (count, block))
        return hidden
