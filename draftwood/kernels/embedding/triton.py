"""Rows of a stored token table: a program per token and 1024 weights, which unpacks what it reads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.formats.ggml import BlockType
from draftwood.kernels._rows import require
from draftwood.kernels.dequant.triton import WEIGHT_OF

COLUMNS = 1024
"""Weights of a program."""


@triton.jit
def _embed(
    p_byte, p_word, p_token, p_out, V: tl.constexpr, N: tl.constexpr, ROW_BYTES: tl.constexpr, BLOCK: tl.constexpr,
    WEIGHT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    token = tl.load(p_token + row)
    known = (token >= 0) & (token < V)
    at = tl.where(known, token, 0) * ROW_BYTES
    m_n = o_n < N
    b_weight = WEIGHT(p_byte + at, p_word + at // 2, o_n // BLOCK, o_n % BLOCK, m_n & known)
    tl.store(p_out + row * N + o_n, tl.where(known, b_weight, float("nan")), mask=m_n)


def embed(table: Tensor, block_type: BlockType, tokens: Tensor) -> Tensor:
    """See `draftwood.kernels.embedding.load_embed`."""
    row_bytes = table.shape[1]
    width = row_bytes // block_type.type_size * block_type.block_size
    require(
        table.dtype is torch.uint8 and block_type.row_bytes(width) == row_bytes and table.is_contiguous(),
        f"a {block_type.name} table is uint8, contiguous, with rows of whole blocks of {block_type.type_size} bytes",
    )
    out = torch.empty(len(tokens), width, dtype=torch.float32, device=tokens.device)
    # Without fusion a weight has the reference's bits: products and sums are rounded one by one.
    _embed[(triton.cdiv(width, COLUMNS), len(tokens))](
        table, table.view(torch.int16), tokens, out, V=len(table), N=width, ROW_BYTES=row_bytes,
        BLOCK=block_type.block_size, WEIGHT=WEIGHT_OF[block_type.name], COLUMNS=COLUMNS, num_warps=4,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out
