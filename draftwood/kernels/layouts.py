"""How many bits of a matrix the GPU kernels keep, and in units of what size; `linear/packing.py` says in what order.

Torch-free, and not in `linear`, because that package imports torch and a plan is made without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

OUTPUTS = 128
"""Outputs of a tile: one program works on that many at once."""

STEP = 128
"""Inputs of a step along K."""

BLOCK = 32
"""Outputs of a block in memory, and inputs of a lane."""

SUPERBLOCK = 256
"""Weights that share a superscale: a block of ggml's K types."""

WEIGHTS = ("fast", "compact")
"""Layouts of all weights. fast: scales multiplied out. compact: the same values in the bits of the file, for the types
in COMPACT."""


@dataclass(frozen=True)
class Layout:
    """How codes and scales of a matrix are kept.

    A weight is scale * (code - offset), or scale * code + the weight of code 0 where the type has minima, and code
    `offset` is then one in the middle, whose weight rounding is to keep. bits: of a code, 4, 5, 6 or 8; 16 stands for
    halves without scales. group: weights that share a scale, 32 or 16. minimum: whether the type has minima. offset: 0
    to 128. compact: scales and minima are kept in two steps, as the file does, and multiplied out in the kernel, to the
    same halves: whole numbers a group, of 6 bits or (group 16) 8, times one or two halves, the superscales, for
    SUPERBLOCK weights.
    """

    bits: int
    group: int = 32
    minimum: bool = False
    offset: int = 0
    compact: bool = False

    @property
    def words(self) -> int:
        """int32 a lane of low parts: 4 bits of a code each, or 8, or 16."""
        return {8: 8, 16: 16}.get(self.bits, 4)

    @property
    def high_words(self) -> int:
        """int32 a lane of what 4 bits do not hold."""
        return {5: 1, 6: 2}.get(self.bits, 0)

    @property
    def scale_bits(self) -> int:
        """Bits a lane of scales and offsets, superscales not counted."""
        if self.compact:
            return 12 if self.minimum else 16
        return 0 if self.bits == 16 else 16 * (BLOCK // self.group) * (2 if self.minimum else 1)

    @property
    def superscale_bytes(self) -> int:
        """Bytes for SUPERBLOCK weights: a half for the scales, another one for minima."""
        return 0 if not self.compact else 4 if self.minimum else 2

    @property
    def bits_a_weight(self) -> float:
        """Bits in memory of one weight, scales included."""
        lane = 32 * (self.words + self.high_words) + self.scale_bits
        return lane / BLOCK + 8 * self.superscale_bytes / SUPERBLOCK


LAYOUTS: dict[str, Layout] = {
    "Q4_0": Layout(4, offset=8),
    "Q4_1": Layout(4, minimum=True, offset=8),
    "Q4_K": Layout(4, minimum=True, offset=8),
    "Q2_K": Layout(4, group=16, minimum=True, offset=2),
    "Q3_K": Layout(4, group=16, offset=4),
    "Q5_0": Layout(5, offset=16),
    "Q5_1": Layout(5, minimum=True, offset=16),
    "Q5_K": Layout(5, minimum=True, offset=16),
    "Q6_K": Layout(6, group=16, offset=32),
    "Q8_0": Layout(8, offset=128),
    "IQ4_NL": Layout(8, offset=128),
    "IQ4_XS": Layout(8, offset=128),
    "F32": Layout(16),
    "F16": Layout(16),
    "BF16": Layout(16),
}
"""By block type. Q2_K, Q3_K, IQ4_NL and IQ4_XS are re-expressed in wider codes, which loses nothing."""

COMPACT: dict[str, Layout] = {name: replace(LAYOUTS[name], compact=True) for name in ("Q4_K", "Q5_K", "Q6_K")}
"""The types that have a compact layout: as many bits as in the file."""


def layout_of(block_type: str, weights: str = "fast") -> Layout:
    """How a matrix of a type in LAYOUTS is kept where the weights are to have a layout of WEIGHTS."""
    return COMPACT.get(block_type, LAYOUTS[block_type]) if weights == "compact" else LAYOUTS[block_type]
