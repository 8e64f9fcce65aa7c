"""Halves out of machine words: what the loads of coded rows share.

Everything is loaded as words of 32 bits, the least that NVIDIA copies to shared memory ahead of the loop that needs it:
halves that are loaded one by one are waited for in every step.
"""

from __future__ import annotations

import itertools
from typing import Any

import triton
import triton.language as tl

from draftwood.kernels.codec import exchanged, tile_layout


def on_nvidia(_semantic: Any = None) -> Any:
    """Whether a kernel is compiled for an NVIDIA GPU, known while it is; the interpreter gives no `_semantic`."""
    return tl.constexpr(_semantic is not None and _semantic.builder.options.backend_name == "cuda")


def staged(field: Any, _semantic: Any = None) -> Any:
    """Whether a field lies in a tile of shared memory, known while a kernel is compiled (README.md)."""
    return tl.constexpr(not isinstance(field, tl.tensor) and hasattr(field, "layout"))


def in_registers(table: Any, _semantic: Any = None) -> Any:
    """Whether a table has been read."""
    return tl.constexpr(isinstance(table, tl.tuple))


def rows_of(field: Any, b_rows: Any, _semantic: Any = None) -> Any:
    """How many rows are loaded: of a tile all."""
    return tl.constexpr(field.shape[0] if staged(field).value else b_rows.shape[0])


def tile_as(tile: Any, dtype: Any, per_word: Any, per_four: Any, _semantic: Any = None, _generator: Any = None) -> Any:
    """A tile [n, W] as words of `dtype`, in lanes that read them, and then store their halves, without conflicts.

    per_word, per_four: how many values further the next word, and the fourth word from here, begin.
    """
    from triton.experimental.gluon import language as gl

    dtype, per_word, per_four = (getattr(each, "value", each) for each in (dtype, per_word, per_four))
    n, width = tile.shape
    width = width * tile.dtype.primitive_bitwidth // dtype.primitive_bitwidth
    if tile.dtype != dtype:
        tile = _semantic.memdesc_reinterpret(tile, dtype, [n, width], tile_layout(dtype, width))
    warps = _semantic.num_warps(_generator).value
    layout = without_conflicts(n, width, dtype.primitive_bitwidth // 8, per_word, per_four, warps)
    return _semantic.shared_load(tile, gl.DistributedLinearLayout(*layout, [], [n, width]))


def without_conflicts(
    n: int, width: int, size: int, per_word: int, per_four: int, warps: int
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """What each bit of a register's, a lane's and a warp's number adds to row and word, for `tile_as`.

    A lane has words of `size` bytes with eight neighbouring values or more, and eight lanes store together, 16 bytes of
    halves each. The rows of halves are cut to 128 bytes, in which 16-byte places are exchanged by the low bits of the
    row's number (the swizzle of an operand of wgmma). So that the eight have all places, each of three bits of a lane's
    number changes one bit of the place: by a word where one does, otherwise by a row, and by a row too where lanes that
    read together would meet in a bank. Of a small tile several lanes or warps have the same words.
    """
    alike, ways = exchanged(width * size)

    def differ(bits: list[list[int]]) -> bool:
        """Whether all sums of bits lie in bytes of their own, of 128."""
        span = {0}
        for row, word in bits:
            byte = (row * width * size ^ word * size ^ row // alike % ways * 16) % 128
            if byte in span:
                return False
            span |= {byte ^ other for other in span}
        return True

    bits = range(width.bit_length() - 1)
    values = {1 << bit: (per_word << bit if bit < 2 else per_four << (bit - 2)) for bit in bits}
    registers = [[0, word] for word in values if values[word] < 8] or [[0, word] for word in values if word * size < 16]
    left = [[0, word] for word in values if [0, word] not in registers]
    rows = [[1 << bit, 0] for bit in range(n.bit_length() - 1)]
    halved = []
    while len(registers) > max(1, (n * width // (32 * warps)).bit_length() - 1):  # Sixteen lanes store half as much.
        halved.append(registers.pop())
    at_once = registers[: (16 // size).bit_length() - 1]
    choices = [[*(bit for bit in left if values[bit[1]] == 8 * place), [place, 0]] for place in (1, 2, 4)]
    lanes = [*next(places for places in itertools.product(*choices) if differ([*at_once, *places])), *halved]
    # Lanes with many values of a word have one row, of whose levels they make a table.
    more = [bit for bit in (left + rows if per_word < 8 else rows + left) if bit not in lanes]
    while len(lanes) < 5 and more:
        lanes.append(next((bit for bit in more if differ([*at_once, *lanes, bit])), more[0]))
        more.remove(lanes[-1])
    none, needed = [[0, 0]] * 5, warps.bit_length() - 1
    across = [*(bit for bit in more if bit in rows), *(bit for bit in reversed(more) if bit in left)][:needed]
    own = registers + [bit for bit in more if bit not in across]
    return own, (lanes + none)[:5], (across + none)[:needed]


def tile_of(tile: Any, _semantic: Any = None) -> Any:
    """A tile, laid out as the operation needs that takes it."""
    from triton.experimental.gluon import language as gl

    return _semantic.shared_load(tile, gl.AutoLayout())


def count_to(n: Any, _semantic: Any = None) -> Any:
    """0 .. n-1, laid out as the operation needs that takes them."""
    n = getattr(n, "value", n)
    if hasattr(_semantic, "set_auto_layout"):
        return _semantic.arange(0, n, None)
    return tl.arange(0, n, _semantic=_semantic)


for _function in (on_nvidia, staged, in_registers, rows_of, tile_as, tile_of, count_to):
    setattr(_function, "__triton_builtin__", True)  # noqa: B010


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
def clamped(b_x):
    """float32 [n, W] -> fp16, beyond 65,504 that; in PTX by the conversion itself, for two values at a time."""
    if on_nvidia():
        b_x = tl.inline_asm_elementwise(
            "cvt.rn.satfinite.f16x2.f32 $0, $2, $1;", "=r,r,r", [b_x], dtype=tl.float16, is_pure=True, pack=2
        )
    else:
        b_x = tl.minimum(tl.maximum(b_x, -65504.0), 65504.0).to(tl.float16)
    return b_x


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
    p_field, base, b_rows, m_rows, start, WIDTH: tl.constexpr, ROW: tl.constexpr, TOGETHER: tl.constexpr = 4,
    PER_WORD: tl.constexpr = 1, PER_FOUR: tl.constexpr = 4,
):  # fmt: skip
    """int32 [n, WIDTH]: words start .. start+WIDTH-1 of rows of ROW words; zeros where not m_rows.

    TOGETHER: words that a lane has at once, at most. What it makes of them it stores to shared memory, and eight lanes
    that do so together should not meet in a bank. PER_WORD, PER_FOUR: see `tile_as`.
    """
    if staged(p_field):
        b_word = tile_as(p_field, tl.int32, PER_WORD, PER_FOUR)
    else:
        p_words = p_field.to(tl.pointer_type(tl.int32)) + base * ROW + start
        o_word = tl.arange(0, WIDTH)
        if TOGETHER < 4:
            o_word = tl.max_contiguous(o_word, TOGETHER)
        b_word = tl.load(p_words + b_rows[:, None] * ROW + o_word[None, :], mask=m_rows[:, None], other=0)
    return b_word


@triton.jit
def load_along(p_field, base, b_rows, m_rows, start, WIDTH: tl.constexpr, ROW: tl.constexpr):
    """As `load_words`, of a field whose bits go to words of another one: in a tile's case laid out as those are."""
    return tile_of(p_field) if staged(p_field) else load_words(p_field, base, b_rows, m_rows, start, WIDTH, ROW)
