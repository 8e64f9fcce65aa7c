"""The block types of ggml: names, codes and sizes, without any arithmetic.

A tensor is a sequence of rows, a row a sequence of whole blocks. A block holds `block_size` weights in
`type_size` bytes; F32, F16 and BF16 are blocks of one weight. Codes and sizes come from the `gguf` library;
what the bytes mean is in `draftwood.kernels.dequant`.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

_SUPPORTED = (
    *("F32", "F16", "BF16"),
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"),
)


@dataclass(frozen=True)
class BlockType:
    """One way of storing weights: `block_size` weights in `type_size` bytes, `code` in GGUF tensor tables."""

    name: str
    code: int
    block_size: int
    type_size: int

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` weights; ValueError unless `n` is a whole number of blocks."""
        blocks, rest = divmod(n, self.block_size)
        if rest:
            raise ValueError(f"a row of {n} weights is not a whole number of {self.name} blocks of {self.block_size}")
        return blocks * self.type_size


def _of(kind: GGMLQuantizationType) -> BlockType:
    block_size, type_size = GGML_QUANT_SIZES[kind]
    return BlockType(kind.name, int(kind), block_size, type_size)


BLOCK_TYPES: dict[str, BlockType] = {name: _of(GGMLQuantizationType[name]) for name in _SUPPORTED}
"""The supported block types by name."""

_BY_CODE: dict[int, BlockType] = {int(kind): _of(kind) for kind in GGMLQuantizationType}


def block_type_of_code(code: int) -> BlockType | None:
    """The block type with this GGUF code, supported or not; None for a code that the `gguf` library does not
    know."""
    return _BY_CODE.get(code)
