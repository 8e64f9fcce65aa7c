"""A quantised matrix in the order in which the GPU kernels read it (README.md beside this file has a picture).

Blocks of 32 outputs x 128 inputs. Lane (g, t) of a matrix instruction owns output g and the inputs 32 t .. 32 t + 31
of the block: its codes are `words` consecutive int32, its scales lie beside those of its neighbours. Inputs are
permuted to match: position 8 m + 2 t + h of a block of 128 is input 32 t + 2 m + h (m 0..15, h 0..1).

Letters: N outputs padded to OUTPUTS, K inputs padded to STEP, S = K / STEP steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draftwood.formats.ggml import BlockType
from draftwood.kernels._rows import padded
from draftwood.kernels.buffers import packed_buffers
from draftwood.kernels.dequant.reference import CODES, FLOATS, SCALE_STEPS, Steps
from draftwood.kernels.layouts import BLOCK, STEP, Layout, layout_of

CODE_UNIT = 2.0**24
"""A code is read as the bits of a half, which stand for code * 2**-24; scales make up for it."""

MINIMUM_UNIT = 2.0**-14
"""A compact layout's minima are whole numbers times halves times this, which keeps ordinary ones normal numbers."""

_SLAB_WEIGHTS = 1 << 23
"""Weights that are packed at once: temporaries take about 30 bytes each."""


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix in its layout.

    words: int32 [N/32, S, 32, 4, words]. high: int32 [N/32, S, 32, 4, high_words] or None. scales: int16
    [N/32, S, 32, 4, scale_bits / 16], halves by group, each followed by what is added in a type with minima;
    None for halves. superscales: None unless the layout is compact, see `_compact_scales`.
    factor: float32 [N], powers of two that outputs are multiplied by. out_features, in_features: without padding.
    """

    layout: Layout
    out_features: int
    in_features: int
    words: Tensor
    high: Tensor | None
    scales: Tensor | None
    superscales: Tensor | None
    factor: Tensor

    @property
    def padded(self) -> tuple[int, int]:
        """N and K."""
        return len(self.factor), self.words.shape[1] * STEP

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        parts = self.words, self.high, self.scales, self.superscales, self.factor
        return sum(each.nbytes for each in parts if each is not None)


def pack(raw: Tensor, block_type: BlockType, in_features: int, weights: str = "fast") -> PackedMatrix:
    """A matrix from its GGUF bytes, uint8 [rows, row bytes], on their device, in a layout of `layouts.WEIGHTS`.

    Scales become halves, each off by 2**-11 at most, around a power of two a row that keeps them normal numbers. Those
    of a compact layout become the same halves when they are used.
    """
    rows, layout = len(raw), layout_of(block_type.name, weights)
    parts = {
        spec.name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype), device=raw.device)
        for spec in packed_buffers(layout, rows, in_features)
    }
    factor = parts["factor"].fill_(1)
    words, high, scales, superscales = parts["words"], parts.get("high"), parts.get("scales"), parts.get("superscales")
    slab = max(1, _SLAB_WEIGHTS // in_features // BLOCK) * BLOCK
    for first in range(0, rows, slab):
        part = padded(raw[first : first + slab].contiguous(), BLOCK)
        inside = slice(first // BLOCK, (first + len(part)) // BLOCK)
        packed = _floats(part, block_type) if layout.bits == 16 else _codes(part, block_type, layout)
        factor[first : first + len(part)] = packed[-1]
        for whole, piece in zip((words, high, scales, superscales), packed[:-1], strict=True):
            if whole is not None and piece is not None:
                whole[inside] = piece
    return PackedMatrix(layout, rows, in_features, words, high, scales, superscales, factor)


Packed = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]
"""Words, high words, scales and superscales of some rows [rows / 32, ...], and the rows' factors [rows]."""


def _widened(x: Tensor, multiple: int) -> Tensor:
    """x [rows, n] with columns of zeros up to a multiple."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % multiple))


def _lanes(values: Tensor) -> Tensor:
    """[rows, 128 S] as what each lane owns: [rows / 32, S, 32, 4, 32]."""
    blocks: Tensor = values.unflatten(0, (-1, BLOCK)).unflatten(-1, (-1, 4, BLOCK))
    return blocks.transpose(1, 2)


def _floats(raw: Tensor, block_type: BlockType) -> Packed:
    weights = _widened(FLOATS[block_type.name](raw.reshape(-1, block_type.type_size)).view(len(raw), -1), STEP)
    factor = _power_above(weights.abs().amax(1), 15)
    halves = (weights / factor.unsqueeze(1)).half()
    return _lanes(halves).contiguous().view(torch.int32), None, None, None, factor


def _codes(raw: Tensor, block_type: BlockType, layout: Layout) -> Packed:
    rows, blocks = len(raw), raw.reshape(-1, block_type.type_size)
    codes = CODES[block_type.name](blocks)
    values = codes.values if layout.minimum else codes.values + layout.offset
    stored = _lanes(_widened(values.view(rows, -1), STEP)).to(torch.uint8).unflatten(-1, (-1, 2))
    words, high = _words(stored, layout.bits), _high(stored, layout.bits)
    if block_type.name in SCALE_STEPS:
        steps, factor = _two_steps(SCALE_STEPS[block_type.name](blocks), rows)
        if layout.compact:
            return words, high, *_compact_scales(steps, rows), factor
        kinds = [kind.product.view(rows, -1) * unit for kind, unit in zip(steps, (1, -MINIMUM_UNIT), strict=False)]
    else:
        kinds = [codes.scale.view(rows, -1) * CODE_UNIT]
        if codes.minimum is not None:
            kinds.append(-codes.minimum.view(rows, -1))
        factor = _power_above(torch.stack(kinds).abs().amax((0, 2)), 15)
        kinds = [kind / factor.unsqueeze(1) for kind in kinds]
    return words, high, _halves(kinds, layout), None, factor


def _two_steps(kinds: Sequence[Steps], rows: int) -> tuple[list[Steps], Tensor]:
    """Scales and minima with their units rounded to halves, and the rows' factors that these were divided by.

    The units are those of CODE_UNIT and MINIMUM_UNIT. Rounding takes nothing from a unit unless it is 2**23 times
    smaller than the row's largest scale.
    """
    units = [
        torch.where(kind.numbers.any(1, keepdim=True), kind.unit * size, 0.0).view(rows, -1)
        for kind, size in zip(kinds, (CODE_UNIT, 1 / MINIMUM_UNIT), strict=False)
    ]
    largest = [kinds[0].product.view(rows, -1) * CODE_UNIT, *units[1:]]
    factor = _power_above(torch.cat(largest, 1).abs().amax(1), 15)
    halves = [(unit / factor.unsqueeze(1)).half().float().view(-1, 1) for unit in units]
    return [Steps(kind.numbers, unit) for kind, unit in zip(kinds, halves, strict=True)], factor


def _by_lane(values: Tensor, each: int) -> Tensor:
    """[rows, 4 each S] as [rows / 32, S, 32, 4, each], contiguous."""
    blocks: Tensor = values.unflatten(0, (-1, BLOCK)).unflatten(-1, (-1, STEP // BLOCK, each))
    return blocks.transpose(1, 2).contiguous()


def _halves(kinds: list[Tensor], layout: Layout) -> Tensor:
    """Scales, and the weights of code 0 where there are minima, float32 [rows, groups] each, as int16 by lane."""
    kinds = [_widened(kind, STEP // layout.group) for kind in kinds]
    halves = [kind.half() for kind in kinds]
    if layout.minimum:
        # What rounding the scale takes off the weight of code `offset`, the weight of code 0 makes up for.
        halves[1] = (kinds[1] + (kinds[0] - halves[0].float()) * (layout.offset / CODE_UNIT)).half()
    return _by_lane(torch.stack(halves, -1).flatten(1), layout.scale_bits // 16).view(torch.int16)


def _compact_scales(kinds: Sequence[Steps], rows: int) -> tuple[Tensor, Tensor]:
    """Whole numbers as int32 [rows / 32, S, n], and units as int32 [rows / 32, S / 2, m].

    Scales alone: two bytes a lane, n = 64; a half a row, m = 16. With minima: a byte a lane with the low four bits of
    its scale and, above them, of its minimum, then four bits a lane with their high two bits, n = 32 + 16; two halves
    a row, m = 32.
    """
    units = torch.cat([kind.unit for kind in kinds], 1).half().view(rows, -1, len(kinds))
    superscales = units.unflatten(0, (-1, BLOCK)).transpose(1, 2).flatten(2).contiguous().view(torch.int32)
    numbers = [kind.numbers.view(rows, -1).to(torch.int8) for kind in kinds]
    if len(numbers) == 1:
        return _by_lane(numbers[0], 2).flatten(2).view(torch.int32), superscales
    low, high = (numbers[0] & 15 | numbers[1] << 4), (numbers[0] >> 4 | numbers[1] >> 4 << 2)
    high = high[:, ::2] | high[:, 1::2] << 4
    parts = [
        _by_lane(low, 1).flatten(2),
        high.unflatten(0, (-1, BLOCK)).unflatten(-1, (-1, 2)).transpose(1, 2).flatten(2),
    ]
    return torch.cat(parts, -1).view(torch.int32), superscales


def _power_above(largest: Tensor, exponent: int) -> Tensor:
    """Powers of two that divide numbers so that the largest comes under 2**exponent; 1 where it is 0."""
    power = torch.exp2(torch.ceil(torch.log2(largest)) - exponent)
    return torch.where(largest > 0, power, 1.0)


def _words(stored: Tensor, bits: int) -> Tensor:
    """Low parts of codes uint8 [..., 16 (m), 2 (h)].

    4 bits: pair P of the four of a word has its codes at bits 4 P (h = 0) and 16 + 4 P. 8 bits: two pairs a word, at
    bits 8 P and 16 + 8 P.
    """
    width = 8 if bits == 8 else 4
    return _side_by_side(stored & ((1 << width) - 1), tuple(range(0, 16, width)))


def high_places(width: int) -> tuple[int, ...]:
    """Where the high words have the pairs' bits above the fourth, `width` of them: the bit of h = 0, for h = 1 16 more.

    Pairs 2 j and 2 j + 1 lie four bits apart, as their codes' low parts do, so that one rotation serves both.
    """
    return tuple(8 * (at // 4) + at % 4 + pair for at in range(0, 8, width) for pair in (0, 4)) if width else (0,)


def _high(stored: Tensor, bits: int) -> Tensor | None:
    """What 4 bits do not hold, at `high_places`."""
    return _side_by_side(stored >> 4, high_places(bits - 4)) if bits in (5, 6) else None


def _side_by_side(fields: Tensor, places: tuple[int, ...]) -> Tensor:
    """Fields uint8 [..., 16, 2], len(places) pairs an int32: h = 0 at the bit of its place, h = 1 16 bits above."""
    pairs = fields.int().unflatten(-2, (-1, len(places)))
    bits = torch.tensor(places, dtype=torch.int32, device=fields.device).unsqueeze(1)
    bits = bits + torch.tensor((0, 16), dtype=torch.int32, device=fields.device)
    words: Tensor = (pairs << bits).sum((-1, -2), dtype=torch.int32)
    return words
