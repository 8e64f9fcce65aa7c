"""The token table: rows looked up where the tokens are, from the bytes of the file."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from draftwood.formats.ggml import BlockType
from draftwood.kernels._select import load_form
from draftwood.kernels.embedding.reference import embed

__all__ = ["Embed", "embed", "load_embed"]


class Embed(Protocol):
    """Rows of a stored table as float32, with the values of `dequantise`."""

    def __call__(self, table: Tensor, block_type: BlockType, tokens: Tensor) -> Tensor:
        """table: uint8 [V, row bytes], contiguous, any block type; on the tokens' device or in pinned host memory.

        tokens: int64 [N], contiguous. Returns float32 [N, E] on the tokens' device. A token outside 0..V-1 gives a row
        of NaN on a GPU, where nothing can be raised inside a pass, and an IndexError on a CPU.
        ValueError if the table's rows are not whole blocks.
        """


def load_embed(device: str) -> Embed:
    """The look-up for tokens on a device ("cpu", "cuda")."""
    function: Embed = load_form(__name__, "embed", device)
    return function
