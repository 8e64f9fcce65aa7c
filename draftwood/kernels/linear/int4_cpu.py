"""torch's weight-only int4 product on a CPU, with bfloat16 activations and groups of 32 weights along K.

The library computes y = sum over k of x * ((code - 8) * scale + zero), codes 0..15, scale and zero in bfloat16, one
pair a group. Block types of 32-weight blocks with a scale fit it directly; the only rounding is scale and zero:

    Q4_0  d * (code - 8)                scale d          zero 0
    Q4_1  d * code + m                  scale d          zero m + 8 d
    Q4_K  d sc * code - dmin mn         scale d sc       zero 8 d sc - dmin mn
    Q8_0  d * code, as two products     high nibble: scale 16 d, zero 0; low nibble: scale d, zero 8 d

Its rows are bitwise independent for 1..64 rows (`tests/kernels/test_row_invariance.py`). Prefill is bound by
arithmetic rather than by bytes, so it uses a float copy of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from draftwood.kernels.dequant import dequantise
from draftwood.kernels.linear.base import LinearForm, LinearRequest, LinearWeight, by_granule
from draftwood.kernels.linear.floats import cpu_has_bf16

GROUP = 32

Parts = list[tuple[Tensor, Tensor, Tensor]]
"""Codes uint8 [N, K] (0..15), scale and zero float32 [N, K/32] of every product whose sum is the matrix."""


def _half(raw: Tensor) -> Tensor:
    return raw.contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """[N, blocks, 16] bytes -> [N, K] codes: byte j holds weight j in its low and weight j + 16 in its high nibble."""
    return torch.cat((packed & 15, packed >> 4), -1).flatten(1)


def _q4_0(raw: Tensor) -> Parts:
    blocks = raw.unflatten(-1, (-1, 18))
    scale = _half(blocks[..., :2]).squeeze(-1)
    return [(_nibbles(blocks[..., 2:]), scale, torch.zeros_like(scale))]


def _q4_1(raw: Tensor) -> Parts:
    blocks = raw.unflatten(-1, (-1, 20))
    scale, minimum = _half(blocks[..., :4]).unbind(-1)
    return [(_nibbles(blocks[..., 4:]), scale, minimum + 8 * scale)]


def _q8_0(raw: Tensor) -> Parts:
    blocks = raw.unflatten(-1, (-1, 34))
    scale = _half(blocks[..., :2]).squeeze(-1)
    code = blocks[..., 2:].flatten(1)
    # A signed byte is 16 * (signed high nibble) + low nibble, and flipping bit 7 turns the signed nibble into 0..15.
    return [((code ^ 0x80) >> 4, 16 * scale, torch.zeros_like(scale)), (code & 15, scale, 8 * scale)]


def _q4_k(raw: Tensor) -> Parts:
    blocks = raw.unflatten(-1, (-1, 144))
    d, dmin = _half(blocks[..., :4]).unsqueeze(-2).unbind(-1)
    low, mid, high = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scale = torch.cat((low & 63, (high & 15) | (low >> 6 << 4)), -1).float() * d
    minimum = torch.cat((mid & 63, (high >> 4) | (mid >> 6 << 4)), -1).float() * dmin
    quads = blocks[..., 16:].unflatten(-1, (4, 32))
    codes = torch.stack((quads & 15, quads >> 4), -2).flatten(1)
    scale, minimum = scale.flatten(1), minimum.flatten(1)
    return [(codes, scale, 8 * scale - minimum)]


PARTS: dict[str, Callable[[Tensor], Parts]] = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0, "Q4_K": _q4_k}


class Int4Weight(LinearWeight):
    """One or two int4 products for decode passes, a float copy for prefill."""

    form = "int4"

    def __init__(self, parts: Parts, dense: Tensor) -> None:
        self._parts = [
            (
                torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 2),
                torch.stack((scale, zero), -1).transpose(0, 1).contiguous().bfloat16(),
            )
            for codes, scale, zero in parts
        ]
        self._dense = dense

    def decode(self, x: Tensor) -> Tensor:
        """See LinearWeight."""
        narrow = x.bfloat16()
        (packed, groups), *more = self._parts
        total: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(narrow, packed, GROUP, groups).float()
        for packed, groups in more:
            total += torch.ops.aten._weight_int4pack_mm_for_cpu(narrow, packed, GROUP, groups)
        return total

    def prefill(self, x: Tensor) -> Tensor:
        """See LinearWeight."""
        return by_granule(x.to(self._dense.dtype), self._dense).float()

    @property
    def nbytes(self) -> int:
        """Bytes of the packed products and of the prefill copy."""
        packed: int = sum(codes.nbytes + groups.nbytes for codes, groups in self._parts)
        return self._dense.nbytes + packed


def _can_run(request: LinearRequest) -> str | None:
    if request.device != "cpu":
        return "a CPU form"
    if request.dtype != "auto":
        return f"dtype {request.dtype} was asked for"
    if request.block_type.name not in PARTS:
        return f"{request.block_type.name} does not fit four-bit codes in groups of {GROUP}"
    if request.out_features % 16 or request.in_features % GROUP:
        return f"{request.out_features} x {request.in_features} is not a multiple of 16 x {GROUP}"
    return None


def _prepare(raw: Tensor, request: LinearRequest) -> LinearWeight:
    dense = dequantise(raw, request.block_type)
    return Int4Weight(PARTS[request.block_type.name](raw), dense.bfloat16() if cpu_has_bf16() else dense)


INT4_CPU = LinearForm("int4", _can_run, _prepare)
