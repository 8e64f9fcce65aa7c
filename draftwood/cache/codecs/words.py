"""Halves out of machine words: what the loads of coded rows share.

Everything is loaded as words of 32 bits, the least that NVIDIA copies to shared memory ahead of the loop that needs it:
halves that are loaded one by one are waited for in every step.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def on_nvidia(_semantic: Any = None) -> Any:
    """Whether a kernel is compiled for an NVIDIA GPU, known while it is; the interpreter gives no `_semantic`."""
    return tl.constexpr(_semantic is not None and _semantic.builder.options.backend_name == "cuda")


on_nvidia.__triton_builtin__ = True  # type: ignore[attr-defined]


@triton.jit
def halves(b_pairs):
    """int32 [...], the bits of two fp16 values each, those of the first in the low half -> fp16 [..., 2]."""
    b_low = b_pairs.to(tl.int16).to(tl.float16, bitcast=True)
    b_high = (b_pairs >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.join(b_low, b_high)


@triton.jit
def numbers(b_bytes):
    """int32 [n, W], four whole numbers of eight bits each -> 1024 + number, fp16 [n, W, 4].

    0x6400 | number is the bits of that half; NVIDIA's byte permutation makes two of them at once, in order.
    """
    if on_nvidia():
        b_first, b_second = tl.inline_asm_elementwise(
            "prmt.b32 $0, $2, 0x64646464, 0x4140; prmt.b32 $1, $2, 0x64646464, 0x4342;", "=r,=r,r", [b_bytes],
            dtype=(tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip
        b_half = halves(tl.join(b_first, b_second))
    else:
        # Bytes 0 and 2 are a pair, and 1 and 3.
        b_half = tl.permute(halves(tl.join(b_bytes, b_bytes >> 8) & 0x00FF00FF | 0x64006400), (0, 1, 3, 2))
    return tl.reshape(b_half, (b_bytes.shape[0], b_bytes.shape[1], 4))


@triton.jit
def scaled(b_x, b_scale, b_low):
    """b_x * b_scale + b_low, rounded once, fp16 of one shape [n, W]; in PTX for two values at a time."""
    if on_nvidia():
        b_sum = tl.inline_asm_elementwise(
            "fma.rn.f16x2 $0, $1, $2, $3;", "=r,r,r,r", [b_x, b_scale, b_low], dtype=tl.float16, is_pure=True, pack=2
        )
    else:
        b_sum = tl.fma(b_x, b_scale, b_low)
    return b_sum


@triton.jit
def load_words(
    p_field, base, b_rows, m_rows, start, WIDTH: tl.constexpr, ROW: tl.constexpr, TOGETHER: tl.constexpr = 4
):  # fmt: skip
    """int32 [n, WIDTH]: words start .. start+WIDTH-1 of rows of ROW words; zeros where not m_rows.

    TOGETHER: words that a lane has at once, at most. What it makes of them it stores to shared memory, and eight lanes
    that do so together should not meet in a bank.
    """
    p_words = p_field.to(tl.pointer_type(tl.int32)) + base * ROW + start
    o_word = tl.arange(0, WIDTH)
    if TOGETHER < 4:
        o_word = tl.max_contiguous(o_word, TOGETHER)
    return tl.load(p_words + b_rows[:, None] * ROW + o_word[None, :], mask=m_rows[:, None], other=0)
