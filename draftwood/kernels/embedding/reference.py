"""Rows of a stored token table, in plain torch."""

from __future__ import annotations

from torch import Tensor

from draftwood.formats.ggml import BlockType
from draftwood.kernels.dequant import dequantise


def embed(table: Tensor, block_type: BlockType, tokens: Tensor) -> Tensor:
    """See `draftwood.kernels.embedding.load_embed`."""
    return dequantise(table[tokens.to(table.device)], block_type).to(tokens.device)
