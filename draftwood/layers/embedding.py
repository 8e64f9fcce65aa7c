"""The token table, kept in its GGUF bytes: rows are looked up and dequantised one by one."""

from __future__ import annotations

from torch import Tensor

from draftwood.formats.ggml import BlockType
from draftwood.kernels.embedding import load_embed


class Embedding:
    """raw: uint8 [V, row bytes], on the device of the tokens or in pinned memory of the host. device: the tokens'."""

    def __init__(self, raw: Tensor, block_type: BlockType, device: str) -> None:
        self.raw, self.block_type = raw, block_type
        self._embed = load_embed(device)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Token ids int64 [N] -> float32 [N, E]."""
        return self._embed(self.raw, self.block_type, tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self.raw.nbytes
