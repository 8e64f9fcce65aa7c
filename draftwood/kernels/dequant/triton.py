"""What the bytes of every block type mean, for a kernel that wants single weights (README.md has the formulas).

Every function takes pointers to a row's bytes, as uint8 and as 16-bit words, the block's number in the row and the
weight's number in the block, all blocks of one shape, and a mask; it gives float32. The steps round as the reference's
do, so a kernel that is compiled without fused multiplication and addition has the reference's bits.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _byte(p_byte, at, mask):
    return tl.load(p_byte + at, mask=mask, other=0).to(tl.int32)


@triton.jit
def _word(p_word, at, mask):
    """The 16-bit word at byte `at`, which is even; int32 0..65535."""
    return tl.load(p_word + at // 2, mask=mask, other=0).to(tl.int32) & 0xFFFF


@triton.jit
def _half(p_word, at, mask):
    return tl.load(p_word + at // 2, mask=mask, other=0).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _signed(byte):
    return (byte ^ 128) - 128


@triton.jit
def _nl4(code):
    """The IQ4 table: its numbers are the bytes of two words, lowest first."""
    word = tl.where(code < 8, -0x091522304052677F, 0x7159453526190D01)
    return _signed(((word >> ((code & 7) * 8).to(tl.int64)) & 0xFF).to(tl.int32)).to(tl.float32)


@triton.jit
def _nibble32(p_byte, codes, n, mask):
    """16 bytes from `codes` on hold 32 codes: the low halves first."""
    return (_byte(p_byte, codes + n % 16, mask) >> (n // 16 * 4)) & 15


@triton.jit
def _bit(p_byte, bits, n, mask):
    """Bit n of the bytes from `bits` on."""
    return (_byte(p_byte, bits + n // 8, mask) >> (n % 8)) & 1


@triton.jit
def _f32(p_byte, p_word, block, n, mask):
    bits = _word(p_word, block * 4, mask) | (_word(p_word, block * 4 + 2, mask) << 16)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _f16(p_byte, p_word, block, n, mask):
    return _half(p_word, block * 2, mask)


@triton.jit
def _bf16(p_byte, p_word, block, n, mask):
    return (_word(p_word, block * 2, mask) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _q4_0(p_byte, p_word, block, n, mask):
    at = block * 18
    return _half(p_word, at, mask) * (_nibble32(p_byte, at + 2, n, mask) - 8).to(tl.float32)


@triton.jit
def _q4_1(p_byte, p_word, block, n, mask):
    at = block * 20
    code = _nibble32(p_byte, at + 4, n, mask).to(tl.float32)
    return _half(p_word, at, mask) * code + _half(p_word, at + 2, mask)


@triton.jit
def _q5_0(p_byte, p_word, block, n, mask):
    at = block * 22
    code = _nibble32(p_byte, at + 6, n, mask) | (_bit(p_byte, at + 2, n, mask) << 4)
    return _half(p_word, at, mask) * (code - 16).to(tl.float32)


@triton.jit
def _q5_1(p_byte, p_word, block, n, mask):
    at = block * 24
    code = _nibble32(p_byte, at + 8, n, mask) | (_bit(p_byte, at + 4, n, mask) << 4)
    return _half(p_word, at, mask) * code.to(tl.float32) + _half(p_word, at + 2, mask)


@triton.jit
def _q8_0(p_byte, p_word, block, n, mask):
    at = block * 34
    return _half(p_word, at, mask) * _signed(_byte(p_byte, at + 2 + n, mask)).to(tl.float32)


@triton.jit
def _iq4_nl(p_byte, p_word, block, n, mask):
    at = block * 18
    return _half(p_word, at, mask) * _nl4(_nibble32(p_byte, at + 2, n, mask))


@triton.jit
def _pair128(p_byte, codes, n, mask):
    """Two bits: each 128 weights share 32 bytes."""
    return (_byte(p_byte, codes + n // 128 * 32 + n % 32, mask) >> (n % 128 // 32 * 2)) & 3


@triton.jit
def _q2_k(p_byte, p_word, block, n, mask):
    at = block * 84
    packed = _byte(p_byte, at + n // 16, mask)
    scale = _half(p_word, at + 80, mask) * (packed & 15).to(tl.float32)
    minimum = _half(p_word, at + 82, mask) * (packed >> 4).to(tl.float32)
    return scale * _pair128(p_byte, at + 16, n, mask).to(tl.float32) - minimum


@triton.jit
def _q3_k(p_byte, p_word, block, n, mask):
    at = block * 110
    part = n // 16
    low = (_byte(p_byte, at + 96 + part % 8, mask) >> (part // 8 * 4)) & 15
    high = (_byte(p_byte, at + 104 + part % 4, mask) >> (part // 4 * 2)) & 3
    scale = _half(p_word, at + 108, mask) * ((low | (high << 4)) - 32).to(tl.float32)
    third = (_byte(p_byte, at + n % 32, mask) >> (n // 32)) & 1
    return scale * ((_pair128(p_byte, at + 32, n, mask) | (third << 2)) - 4).to(tl.float32)


@triton.jit
def _affine_k(p_byte, p_word, at, part, code, mask):
    """Q4_K and Q5_K: (d scale) code - (dmin minimum) with the six-bit numbers of sub-block `part`."""
    m_late = mask & (part >= 4)
    scale, minimum = _byte(p_byte, at + 4 + part % 4, mask), _byte(p_byte, at + 8 + part % 4, mask)
    both = _byte(p_byte, at + 12 + part % 4, m_late)
    scale = tl.where(part < 4, scale & 63, (both & 15) | ((scale >> 6) << 4))
    minimum = tl.where(part < 4, minimum & 63, (both >> 4) | ((minimum >> 6) << 4))
    d, dmin = _half(p_word, at, mask), _half(p_word, at + 2, mask)
    return d * scale.to(tl.float32) * code.to(tl.float32) - dmin * minimum.to(tl.float32)


@triton.jit
def _nibble64(p_byte, codes, n, mask):
    """Each 64 weights share 32 bytes: the first 32 in the low halves."""
    return (_byte(p_byte, codes + n // 64 * 32 + n % 32, mask) >> (n % 64 // 32 * 4)) & 15


@triton.jit
def _q4_k(p_byte, p_word, block, n, mask):
    at = block * 144
    return _affine_k(p_byte, p_word, at, n // 32, _nibble64(p_byte, at + 16, n, mask), mask)


@triton.jit
def _q5_k(p_byte, p_word, block, n, mask):
    at = block * 176
    fifth = (_byte(p_byte, at + 16 + n % 32, mask) >> (n // 32)) & 1
    return _affine_k(p_byte, p_word, at, n // 32, _nibble64(p_byte, at + 48, n, mask) | (fifth << 4), mask)


@triton.jit
def _q6_k(p_byte, p_word, block, n, mask):
    at = block * 210
    low = (_byte(p_byte, at + n // 128 * 64 + n % 64, mask) >> (n % 128 // 64 * 4)) & 15
    code = (low | (_pair128(p_byte, at + 128, n, mask) << 4)) - 32
    scale = _half(p_word, at + 208, mask) * _signed(_byte(p_byte, at + 192 + n // 16, mask)).to(tl.float32)
    return scale * code.to(tl.float32)


@triton.jit
def _iq4_xs(p_byte, p_word, block, n, mask):
    at = block * 136
    part = n // 32
    low = (_byte(p_byte, at + 4 + part // 2, mask) >> (part % 2 * 4)) & 15
    high = (_byte(p_byte, at + 2 + part // 4, mask) >> (part % 4 * 2)) & 3
    scale = _half(p_word, at, mask) * ((low | (high << 4)) - 32).to(tl.float32)
    return scale * _nl4(_nibble32(p_byte, at + 8 + part * 16, n % 32, mask))


WEIGHT_OF: dict[str, Any] = {
    "F32": _f32, "F16": _f16, "BF16": _bf16, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1,
    "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}  # fmt: skip
"""By block type name: (bytes, words, block, weight of the block, mask) to float32."""
