"""A quantised matrix in the order in which the GPU kernels read it (README.md beside this file has a picture).

Blocks of 32 outputs x 128 inputs. Lane (g, t) of a matrix instruction owns output g and the inputs 32 t .. 32 t + 31
of the block: its codes are `words` consecutive int32, its scales lie beside those of its neighbours. Inputs are
permuted to match: position 8 m + 2 t + h of a block of 128 is input 32 t + 2 m + h (m 0..15, h 0..1).

Letters: N outputs padded to OUTPUTS, K inputs padded to STEP, S = K / STEP steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from draftwood.formats.ggml import BlockType
from draftwood.kernels.buffers import packed_buffers
from draftwood.kernels.dequant.reference import CODES, FLOATS
from draftwood.kernels.layouts import BLOCK, LAYOUTS, STEP, Layout
from draftwood.kernels.linear.base import padded

CODE_UNIT = 2.0**24
"""A code is read as the bits of a half, which stand for code * 2**-24; scales make up for it."""

_SLAB_WEIGHTS = 1 << 23
"""Weights that are packed at once: temporaries take about 30 bytes each."""


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix in its layout.

    words: int32 [N/32, S, 32, 4, words]. high: int32 [N/32, S, 32, 4, high_words] or None. scales: int16
    [N/32, S, 32, 4, scale_bytes / 2], halves by group, each followed by what is added in a type with minima;
    None for halves.
    factor: float32 [N], powers of two that outputs are multiplied by. out_features, in_features: without padding.
    """

    layout: Layout
    out_features: int
    in_features: int
    words: Tensor
    high: Tensor | None
    scales: Tensor | None
    factor: Tensor

    @property
    def padded(self) -> tuple[int, int]:
        """N and K."""
        return len(self.factor), self.words.shape[1] * STEP

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(each.nbytes for each in (self.words, self.high, self.scales, self.factor) if each is not None)


def pack(raw: Tensor, block_type: BlockType, in_features: int) -> PackedMatrix:
    """A matrix from its GGUF bytes, uint8 [rows, row bytes], on their device.

    Scales become halves, each off by 2**-11 at most, around a power of two a row that keeps them normal numbers.
    """
    rows, layout = len(raw), LAYOUTS[block_type.name]
    parts = {
        spec.name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype), device=raw.device)
        for spec in packed_buffers(layout, rows, in_features)
    }
    words, high, scales, factor = parts["words"], parts.get("high"), parts.get("scales"), parts["factor"].fill_(1)
    slab = max(1, _SLAB_WEIGHTS // in_features // BLOCK) * BLOCK
    for first in range(0, rows, slab):
        part = padded(raw[first : first + slab].contiguous(), BLOCK)
        inside = slice(first // BLOCK, (first + len(part)) // BLOCK)
        packed = _floats(part, block_type) if layout.bits == 16 else _codes(part, block_type, layout)
        factor[first : first + len(part)] = packed[-1]
        for whole, piece in zip((words, high, scales), packed[:-1], strict=True):
            if whole is not None and piece is not None:
                whole[inside] = piece
    return PackedMatrix(layout, rows, in_features, words, high, scales, factor)


Packed = tuple[Tensor, Tensor | None, Tensor | None, Tensor]
"""Words, high words and scales of some rows [rows / 32, S, 32, 4, n], and the rows' factors [rows]."""


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
    return _lanes(halves).contiguous().view(torch.int32), None, None, factor


def _codes(raw: Tensor, block_type: BlockType, layout: Layout) -> Packed:
    rows = len(raw)
    codes = CODES[block_type.name](raw.reshape(-1, block_type.type_size))
    values = codes.values if layout.minimum else codes.values + layout.offset
    stored = _lanes(_widened(values.view(rows, -1), STEP)).to(torch.uint8).unflatten(-1, (-1, 2))
    scale = _widened(codes.scale.view(rows, -1), STEP // layout.group)
    kinds = [scale * CODE_UNIT]
    if codes.minimum is not None:
        kinds.append(-_widened(codes.minimum.view(rows, -1), STEP // layout.group))
    factor = _power_above(torch.stack(kinds).abs().amax((0, 2)), 15)
    halves = [(kind / factor.unsqueeze(1)).half() for kind in kinds]
    if codes.minimum is not None:
        # What rounding the scale takes off the weight of code `offset`, the weight of code 0 makes up for.
        lost = (kinds[0] / factor.unsqueeze(1) - halves[0].float()) * (layout.offset / CODE_UNIT)
        halves[1] = (kinds[1] / factor.unsqueeze(1) + lost).half()
    groups = (
        torch.stack(halves, -1).flatten(1).unflatten(0, (-1, BLOCK)).unflatten(-1, (-1, 4, layout.scale_bytes // 2))
    )
    scales = groups.transpose(1, 2).contiguous().view(torch.int16)
    return _words(stored, layout.bits), _high(stored, layout.bits), scales, factor


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
