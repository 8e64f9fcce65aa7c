"""From stored blocks to float32 weights."""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.formats.ggml import BlockType
from draftwood.kernels.dequant.reference import weights_of

# Temporaries of a slab take up to 20 bytes a weight; this many weights keep them small beside the output.
_SLAB_WEIGHTS = 1 << 20


def dequantise(raw: Tensor, block_type: BlockType) -> Tensor:
    """The weights that `raw` stores, exactly as ggml computes them.

    `raw` is uint8 [..., row_bytes] as `TensorSource.raw` gives it, on any device; the result is float32 [...,
    n] on the same device and shares no memory with it. ValueError if the last dimension is no whole number of
    blocks.
    """
    blocks_per_row, rest = divmod(raw.shape[-1], block_type.type_size)
    if raw.dtype != torch.uint8 or rest:
        raise ValueError(
            f"{block_type.name} rows are uint8 and a multiple of {block_type.type_size} bytes long, "
            f"not {raw.dtype} and {raw.shape[-1]} long"
        )
    function = weights_of(block_type.name)
    shape = (*raw.shape[:-1], blocks_per_row * block_type.block_size)
    out = torch.empty(shape, dtype=torch.float32, device=raw.device)
    blocks = raw.reshape(-1, block_type.type_size)
    values = out.view(-1, block_type.block_size)
    step = max(1, _SLAB_WEIGHTS // block_type.block_size)
    for start in range(0, blocks.shape[0], step):
        values[start : start + step] = function(blocks[start : start + step])
    return out
