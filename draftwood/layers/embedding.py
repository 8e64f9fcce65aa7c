"""The token table, kept in its GGUF bytes: rows are looked up and dequantised one by one."""

from __future__ import annotations

from torch import Tensor

from draftwood.formats.ggml import BlockType
from draftwood.kernels.embedding import embed


class Embedding:
    """raw: uint8 [V, row bytes]."""

    def __init__(self, raw: Tensor, block_type: BlockType) -> None:
        self.raw, self.block_type = raw, block_type

    def __call__(self, tokens: Tensor) -> Tensor:
        """Token ids int64 [N] -> float32 [N, E]."""
        return embed(self.raw, self.block_type, tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self.raw.nbytes
