"""What the bytes of every block type mean, in plain torch operations (README.md beside this file has the
formulas).

Every function takes blocks uint8 [B, type_size] on any device. Products and sums are rounded in ggml's order, one
float32 operation each, so the weights are ggml's bit for bit (where ggml's own build fuses a multiplication and a
subtraction, Q4_K and Q5_K, they may differ in the last place).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NL4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Steps:
    """One number a group, kept in two steps: whole numbers, float32 [B, groups], times a half, float32 [B, 1]."""

    numbers: Tensor
    unit: Tensor

    @property
    def product(self) -> Tensor:
        """float32 [B, groups], exact."""
        return self.unit * self.numbers


@dataclass(frozen=True)
class Codes:
    """Blocks as whole numbers with scales: a weight is scale * value - minimum, of its group.

    values: float32 [B, block_size], whole numbers from -128 to 127. scale: float32 [B, groups]. minimum: the same, or
    None for 0.
    """

    values: Tensor
    scale: Tensor
    minimum: Tensor | None = None

    @classmethod
    def of(cls, values: Tensor, scale: Steps, minimum: Steps | None = None) -> Codes:
        """Of scales that are kept in two steps."""
        return cls(values, scale.product, None if minimum is None else minimum.product)

    def weights(self) -> Tensor:
        """float32 [B, block_size]."""
        groups = self.scale.shape[1]
        product = self.scale.unsqueeze(-1) * self.values.reshape(len(self.values), groups, -1)
        return (product if self.minimum is None else product - self.minimum.unsqueeze(-1)).flatten(1)


def _float16(blocks: Tensor, at: int) -> Tensor:
    """The IEEE half at byte `at` of every block, float32 [B, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _fields(data: Tensor, width: int, count: int) -> Tensor:
    """Fields of `width` bits, lowest first: uint8 [..., m] to uint8 [..., count, m]."""
    shifts = torch.arange(0, width * count, width, dtype=torch.uint8, device=data.device)
    return (data.unsqueeze(-2) >> shifts.unsqueeze(-1)) & ((1 << width) - 1)


def _split(data: Tensor, groups: int, size: int) -> Tensor:
    """[..., groups * size] to [..., groups, size]."""
    return data.reshape(*data.shape[:-1], groups, size)


def _lookup(codes: Tensor) -> Tensor:
    """The IQ4 table at codes 0..15, float32 of the same shape."""
    table = torch.tensor(NL4, dtype=torch.float32, device=codes.device)
    return table[codes.int()]


def _f32(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float32)


def _f16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float16).float()


def _bf16(blocks: Tensor) -> Tensor:
    # By bits, so that NaN payloads survive too.
    return (blocks.contiguous().view(torch.int16).int() << 16).view(torch.float32)


def _nibbles32(data: Tensor) -> Tensor:
    """16 bytes to 32 codes: all low halves, then all high halves."""
    return _fields(data, 4, 2).flatten(-2)


def _fifth_bits(data: Tensor) -> Tensor:
    """Four bytes to the 32 bits of a little-endian word, as 0 or 16."""
    return _fields(data, 1, 8).transpose(-1, -2).flatten(-2) << 4


def _q4_0(blocks: Tensor) -> Codes:
    return Codes(_nibbles32(blocks[:, 2:]).float() - 8, _float16(blocks, 0))


def _q4_1(blocks: Tensor) -> Codes:
    return Codes(_nibbles32(blocks[:, 4:]).float(), _float16(blocks, 0), -_float16(blocks, 2))


def _q5_0(blocks: Tensor) -> Codes:
    codes = _nibbles32(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return Codes(codes.float() - 16, _float16(blocks, 0))


def _q5_1(blocks: Tensor) -> Codes:
    codes = _nibbles32(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return Codes(codes.float(), _float16(blocks, 0), -_float16(blocks, 2))


def _q8_0(blocks: Tensor) -> Codes:
    return Codes(blocks[:, 2:].view(torch.int8).float(), _float16(blocks, 0))


def _iq4_nl(blocks: Tensor) -> Codes:
    return Codes(_lookup(_nibbles32(blocks[:, 2:])), _float16(blocks, 0))


def _pairs128(data: Tensor) -> Tensor:
    """64 bytes of 2-bit fields to codes [B, 256]: each half of 128 weights shares 32 bytes."""
    return _fields(_split(data, 2, 32), 2, 4).flatten(1)


def _q2_k(blocks: Tensor) -> Codes:
    d, dmin = _float16(blocks, 80), _float16(blocks, 82)
    packed = blocks[:, :16]
    return Codes(_pairs128(blocks[:, 16:80]).float(), d * (packed & 15).float(), dmin * (packed >> 4).float())


def _q3_k(blocks: Tensor) -> Codes:
    low = _fields(blocks[:, 96:104], 4, 2).flatten(1)
    high = _fields(blocks[:, 104:108], 2, 4).flatten(1)
    scale = _float16(blocks, 108) * ((low | (high << 4)).float() - 32)
    third = _fields(blocks[:, :32], 1, 8).flatten(1)
    # A set high bit means "do not subtract 4": the code is the 3-bit number minus 4.
    return Codes((_pairs128(blocks[:, 32:96]) | (third << 2)).float() - 4, scale)


def _scales_and_minima(blocks: Tensor) -> tuple[Steps, Steps]:
    """Of Q4_K and Q5_K, for eight groups."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), dim=1)
    minimum = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=1)
    return Steps(scale.float(), _float16(blocks, 0)), Steps(minimum.float(), _float16(blocks, 2))


def _signed_scales(blocks: Tensor) -> tuple[Steps]:
    """Of Q6_K, for sixteen groups."""
    return (Steps(blocks[:, 192:208].view(torch.int8).float(), _float16(blocks, 208)),)


def _nibbles64(data: Tensor) -> Tensor:
    """128 bytes to codes [B, 8, 32]: 64 weights share 32 bytes, the first 32 in the low halves."""
    return _fields(_split(data, 4, 32), 4, 2).flatten(1, 2)


def _q4_k(blocks: Tensor) -> Codes:
    return Codes.of(_nibbles64(blocks[:, 16:]).flatten(1).float(), *_scales_and_minima(blocks))


def _q5_k(blocks: Tensor) -> Codes:
    codes = _nibbles64(blocks[:, 48:]) | (_fields(blocks[:, 16:48], 1, 8) << 4)
    return Codes.of(codes.flatten(1).float(), *_scales_and_minima(blocks))


def _q6_k(blocks: Tensor) -> Codes:
    low = _fields(_split(blocks[:, :128], 2, 64), 4, 2).flatten(1)
    codes = (low | (_pairs128(blocks[:, 128:192]) << 4)).float() - 32
    return Codes.of(codes, *_signed_scales(blocks))


def _iq4_xs(blocks: Tensor) -> Codes:
    low = _fields(blocks[:, 4:8], 4, 2).transpose(-1, -2).flatten(1)
    high = _fields(blocks[:, 2:4], 2, 4).transpose(-1, -2).flatten(1)
    scale = _float16(blocks, 0) * ((low | (high << 4)).float() - 32)
    return Codes(_lookup(_fields(_split(blocks[:, 8:], 8, 16), 4, 2).flatten(1)), scale)


CODES: dict[str, Callable[[Tensor], Codes]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
"""The quantised block types by name: blocks uint8 [B, type_size] as codes."""

SCALE_STEPS: dict[str, Callable[[Tensor], tuple[Steps, ...]]] = {
    "Q4_K": _scales_and_minima,
    "Q5_K": _scales_and_minima,
    "Q6_K": _signed_scales,
}
"""Types that keep scales in two steps: blocks uint8 [B, type_size] as scales and, where there are any, minima."""

FLOATS: dict[str, Callable[[Tensor], Tensor]] = {"F32": _f32, "F16": _f16, "BF16": _bf16}
"""The others: blocks uint8 [B, type_size] as float32 [B, 1]."""


def weights_of(block_type: str) -> Callable[[Tensor], Tensor]:
    """What turns blocks uint8 [B, type_size] of a type into float32 [B, block_size]."""
    if block_type in FLOATS:
        return FLOATS[block_type]
    codes = CODES[block_type]
    return lambda blocks: codes(blocks).weights()
