"""A kernel that does nothing but load rows by a KV type's codec, in pieces as attention asks for them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(
    p_0, p_1, p_2, p_3, p_out, rows, first, count, LOAD: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """Rows first .. first+count-1 of a head -> float16 [G, N, D], zeros behind them."""
    head = tl.program_id(0).to(tl.int64)
    o_row = tl.arange(0, N)
    for start in range(0, D, WIDTH):
        b_x = LOAD((p_0, p_1, p_2, p_3), head * rows, first + o_row, o_row < count, start, WIDTH, D)
        o_d = start + tl.arange(0, WIDTH)
        tl.store(p_out + (head * N + o_row[:, None]) * D + o_d[None, :], b_x)


@triton.jit
def permuted(b_first, b_second, b_places):
    """NVIDIA's byte permutation by shifts: four of eight bytes, by the nibbles of the low half of `b_places`."""
    b_out = b_places * 0
    for byte in tl.static_range(4):
        b_place = (b_places >> (4 * byte)) & 15
        b_chosen = tl.where(b_place < 4, b_first, b_second)
        b_out |= ((b_chosen >> ((b_place & 3) * 8)) & 255) << (8 * byte)
    return b_out
