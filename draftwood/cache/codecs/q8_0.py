"""KV type q8_0 on a GPU: fields scale and codes (cache/q8_0.py has the format)."""

from __future__ import annotations

import triton
import triton.language as tl

from draftwood.kernels.codec import Codec


@triton.jit
def _load(tensors, base, b_rows, m_rows, start, WIDTH: tl.constexpr, D: tl.constexpr):
    N: tl.constexpr = b_rows.shape[0]
    BLOCKS: tl.constexpr = WIDTH // 32
    p_scale = tensors[0] + base * (D // 32) + start // 32
    p_codes = tensors[1] + base * D + start
    b_codes = tl.load(p_codes + b_rows[:, None] * D + tl.arange(0, WIDTH)[None, :], mask=m_rows[:, None], other=0)
    o_block = tl.arange(0, BLOCKS)
    b_scale = tl.load(p_scale + b_rows[:, None] * (D // 32) + o_block[None, :], mask=m_rows[:, None], other=0.0)
    # One load a block, spread by registers; a scale's address for every value would be a load for every value.
    b_scale = tl.reshape(tl.broadcast_to(b_scale[:, :, None], (N, BLOCKS, 32)), (N, WIDTH))
    return b_codes.to(tl.float16) * b_scale


@triton.jit
def _store(tensors, row, b_x, D: tl.constexpr):
    BLOCKS: tl.constexpr = D // 32
    b_blocks = tl.reshape(b_x, (BLOCKS, 32))
    b_step = tl.div_rn(tl.max(tl.abs(b_blocks), 1), 127.0)
    b_inverse = tl.where(b_step == 0, 0.0, tl.div_rn(1.0, b_step))
    b_steps = b_blocks * b_inverse[:, None]
    # Halves away from zero: a cast drops the fraction.
    b_codes = (b_steps + tl.where(b_steps < 0, -0.5, 0.5)).to(tl.int8)
    tl.store(tensors[0] + row * BLOCKS + tl.arange(0, BLOCKS), b_step.to(tl.float16))
    tl.store(tensors[1] + row * D + tl.arange(0, D), tl.reshape(b_codes, (D,)))


CODEC = Codec(_load, _store, rotated=True)
