"""Tokens to rows, rotary of heads, and logits to tokens."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from draftwood.batch import MAX_ROWS
from draftwood.bench.suites.kernel_cases.base import (
    CANDIDATES,
    FLOATS,
    Case,
    Kernel,
    Setting,
    Work,
    beyond,
    projected,
    unequal,
)
from draftwood.bench.suites.ops import COPIED
from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.kernels.dequant import dequantise
from draftwood.kernels.draw import draw
from draftwood.kernels.rope import frequencies, rotation
from draftwood.kernels.rope.reference import rotate_heads as rotate_reference
from draftwood.kernels.top_k.reference import top_k as top_k_reference

TABLE_TYPE = "Q4_K"


def rotate_heads(setting: Setting) -> Case:
    """Norms and rotary of queries and keys."""
    spec = setting.spec

    def make() -> Kernel:
        from draftwood.kernels.rope import triton

        q_norm, k_norm = (setting.random(spec.head_dim, seed=seed).clamp(-1, 1) for seed in (2, 3))

        def turn(rows: int) -> Tensor:
            places = torch.arange(rows, device=setting.device) + 100_000
            return rotation(places, frequencies(spec.rope_width, spec.rope_base).to(setting.device))

        def gate() -> float:
            q, k, _ = projected(setting, setting.gated)
            made = triton.rotate_heads(q, k, turn(setting.gated), spec.pairing, q_norm, k_norm, spec.eps)
            expected = rotate_reference(q, k, turn(setting.gated), spec.pairing, q_norm, k_norm, spec.eps)
            return max(beyond(one, other, 4e-6, 4e-6) for one, other in zip(made, expected, strict=True))

        def work(rows: int) -> Work:
            moved = rows * ((spec.heads + spec.kv_heads) * spec.head_dim * 8 + spec.rope_width * 4)
            q, k, _ = projected(setting, setting.sets(moved), rows)
            rotate = partial(
                triton.rotate_heads,
                turn=turn(rows),
                pairing=spec.pairing,
                q_norm=q_norm,
                k_norm=k_norm,
                eps=spec.eps,
            )
            return Work([partial(rotate, *heads) for heads in zip(q, k, strict=True)], moved)

        return Kernel(gate, work)

    return Case("rope.rotate_heads", f"{spec.heads} + {spec.kv_heads} x {spec.head_dim}", "heads in and out", make)


def embed(setting: Setting) -> Case:
    """Rows of the token table."""
    kind, vocab, width = BLOCK_TYPES[TABLE_TYPE], setting.spec.vocab, setting.spec.hidden

    def make() -> Kernel:
        from draftwood.kernels.embedding import triton

        table = draw(1, kind, (vocab, width), 0.02, setting.device)
        generator = torch.Generator().manual_seed(0)

        def tokens(*shape: int) -> Tensor:
            return torch.randint(0, vocab, shape, generator=generator).to(setting.device)

        def gate() -> float:
            some = tokens(setting.gated)
            return unequal(triton.embed(table, kind, some).cpu(), dequantise(table[some].cpu(), kind))

        def work(rows: int) -> Work:
            moved = rows * (kind.row_bytes(width) + width * 4)
            inputs = tokens(setting.sets(moved), rows)
            return Work([partial(triton.embed, table, kind, some) for some in inputs], moved)

        return Kernel(gate, work)

    return Case("embedding.embed", f"{vocab} x {width} {TABLE_TYPE}", "rows as stored, float32 out", make)


def _logits(setting: Setting, dtype: torch.dtype) -> Tensor:
    """More rows of logits than the L2 holds."""
    rows = max(MAX_ROWS, min(-(-COPIED // (setting.spec.vocab * dtype.itemsize)), setting.calls * MAX_ROWS))
    generator = torch.Generator(setting.device).manual_seed(0)
    shape = rows, setting.spec.vocab
    return torch.randn(shape, generator=generator, device=setting.device, dtype=dtype).mul_(3)


def _row_sets(setting: Setting, logits: Tensor, rows: int) -> list[Tensor]:
    return list(logits.split(rows)[: min(setting.calls, len(logits) // rows)])


def top_k(setting: Setting, dtype: torch.dtype) -> Case:
    """What a draft considers at a depth."""
    vocab = setting.spec.vocab

    def make() -> Kernel:
        from draftwood.kernels.top_k import triton

        logits = _logits(setting, dtype)

        def gate() -> float:
            values, ids, lse = (part.cpu() for part in triton.top_k(logits[: setting.gated], CANDIDATES))
            expected = top_k_reference(logits[: setting.gated].cpu(), CANDIDATES)
            errors = beyond(values, expected[0], 1e-6, 1e-9), beyond(lse, expected[2], 1e-6, 3e-6)
            return max(*errors, unequal(ids, expected[1]))

        def work(rows: int) -> Work:
            inputs = _row_sets(setting, logits, rows)
            return Work([partial(triton.top_k, x, CANDIDATES) for x in inputs], rows * vocab * dtype.itemsize)

        return Kernel(gate, work)

    name = str(dtype).removeprefix("torch.")
    return Case("top_k", f"{CANDIDATES} of {vocab} {name}", "logits", make)


def gumbel(setting: Setting, temperature: float) -> Case:
    """The target's own draw; at temperature 0 its likeliest token."""
    vocab = setting.spec.vocab

    def make() -> Kernel:
        from draftwood.kernels.gumbel import triton
        from draftwood.kernels.gumbel.reference import gumbel_argmax as expected

        logits = _logits(setting, torch.float32)
        places, seed = torch.arange(MAX_ROWS, device=setting.device), torch.tensor([5], device=setting.device)
        heat = torch.tensor([temperature], device=setting.device)

        def gate() -> float:
            rows = logits[:32], places[:32], seed, heat
            other = float((triton.gumbel_argmax(*rows) != expected(*rows)).double().mean())
            # Where two tokens are equal to the last place of a float32, devices may differ.
            return other / 0.05 if temperature else math.inf if other else 0.0

        def work(rows: int) -> Work:
            inputs = _row_sets(setting, logits, rows)
            calls = [partial(triton.gumbel_argmax, x, places[:rows], seed, heat) for x in inputs]
            return Work(calls, rows * vocab * FLOATS)

        return Kernel(gate, work)

    return Case("gumbel.draw" if temperature else "gumbel.argmax", f"{vocab} float32", "logits", make)
