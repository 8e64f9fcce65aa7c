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
def load_words(p_field, base, b_rows, m_rows, start, WIDTH: tl.constexpr, ROW: tl.constexpr):
    """int32 [n, WIDTH]: words start .. start+WIDTH-1 of rows of ROW words; zeros where not m_rows."""
    p_words = p_field.to(tl.pointer_type(tl.int32)) + base * ROW + start
    return tl.load(p_words + b_rows[:, None] * ROW + tl.arange(0, WIDTH)[None, :], mask=m_rows[:, None], other=0)
