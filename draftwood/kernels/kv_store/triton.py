"""Storing, rotating and committing rows on a GPU (README.md has the maths and the launches).

Letters: n rows, G KV heads, H heads, D head dim, C committed rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.kernels._rows import aligned, require, row_stride
from draftwood.kernels.codec import KeptRows
from draftwood.kernels.hadamard import signs
from draftwood.kernels.hadamard.reference import SMALLEST_PIECE
from draftwood.kernels.kv_store import RowTable

_COMMITTED = 16
"""Rows that a program of the commit copies at once."""


@triton.jit
def _hadamard(b_x, D: tl.constexpr, STEPS: tl.constexpr, FACTOR: tl.constexpr):
    """[D] times the orthonormal Hadamard matrix.

    Each step adds the second half to the first and subtracts it, and lays the two results side by side: after log2(D)
    steps every value is back in its place and in Sylvester's order.
    """
    for _ in tl.static_range(STEPS):
        b_first, b_second = tl.split(tl.trans(tl.reshape(b_x, (2, D // 2))))
        b_x = tl.reshape(tl.join(b_first + b_second, b_first - b_second), (D,))
    return b_x * FACTOR


@triton.jit
def _store_row(
    p_x, tensors, row, p_signs, STORE: tl.constexpr, TURN: tl.constexpr, D: tl.constexpr, STEPS: tl.constexpr,
    FACTOR: tl.constexpr,
):  # fmt: skip
    o_d = tl.arange(0, D)
    b_x = tl.load(p_x + o_d).to(tl.float32)
    if TURN:
        b_x = _hadamard(b_x * tl.load(p_signs + o_d), D, STEPS, FACTOR)
    STORE(tensors, row, b_x, D)


@triton.jit(do_not_specialize=["offset"])
def _store_rows(
    p_k, p_v, p_k0, p_k1, p_k2, p_k3, p_v0, p_v1, p_v2, p_v3, p_signs, p_at, p_count, offset, plane_rows,
    K_ROW: tl.constexpr, K_HEAD: tl.constexpr, V_ROW: tl.constexpr, V_HEAD: tl.constexpr, STORE_K: tl.constexpr,
    STORE_V: tl.constexpr, TURN_K: tl.constexpr, TURN_V: tl.constexpr, D: tl.constexpr, STEPS: tl.constexpr,
    FACTOR: tl.constexpr,
):  # fmt: skip
    """One head of one row, of K or of V."""
    row, group, axis = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    count = row + 1
    if p_count is not None:
        count = tl.load(p_count)
    if row < count:
        to = group.to(tl.int64) * plane_rows + offset + row
        if p_at is not None:
            to += tl.load(p_at)
        if axis == 0:
            p_row = p_k + row * K_ROW + group * K_HEAD
            _store_row(p_row, (p_k0, p_k1, p_k2, p_k3), to, p_signs, STORE_K, TURN_K, D, STEPS, FACTOR)
        else:
            p_row = p_v + row * V_ROW + group * V_HEAD
            _store_row(p_row, (p_v0, p_v1, p_v2, p_v3), to, p_signs, STORE_V, TURN_V, D, STEPS, FACTOR)


@triton.jit
def _rotate_rows(
    p_x, p_signs, p_out, ROW: tl.constexpr, HEAD: tl.constexpr, H: tl.constexpr, INVERSE: tl.constexpr,
    D: tl.constexpr, STEPS: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """One head of one row."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_d = tl.arange(0, D)
    b_x = tl.load(p_x + row * ROW + head * HEAD + o_d)
    b_signs = tl.load(p_signs + o_d)
    if not INVERSE:
        b_x *= b_signs
    b_x = _hadamard(b_x, D, STEPS, FACTOR)
    if INVERSE:
        b_x *= b_signs
    tl.store(p_out + (row * H + head) * D + o_d, b_x)


@triton.jit
def _copy(p_head, width, p_path, count, committed, staging, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Rows of `width` units of one head."""
    o_unit = tl.arange(0, UNITS)
    for first in range(0, count, ROWS):
        o_row = first + tl.arange(0, ROWS)
        m_row = o_row < count
        b_from = staging + tl.load(p_path + o_row, mask=m_row, other=0)
        m_unit = m_row[:, None] & (o_unit < width)[None, :]
        b_unit = tl.load(p_head + b_from[:, None] * width + o_unit[None, :], mask=m_unit)
        tl.store(p_head + (committed + o_row)[:, None] * width + o_unit[None, :], b_unit, mask=m_unit)


@triton.jit
def _commit_rows(
    p_addresses, p_path, p_count, p_committed, plane_rows, staging, ROWS: tl.constexpr, UNITS: tl.constexpr
):
    """All accepted rows of one head in one buffer, in the widest units that its rows consist of."""
    buffer, group = tl.program_id(0), tl.program_id(1)
    address, width = tl.load(p_addresses + buffer * 2), tl.load(p_addresses + buffer * 2 + 1)
    address += group.to(tl.int64) * plane_rows * width
    count, committed = tl.load(p_count).to(tl.int32), tl.load(p_committed)
    if width % 8 == 0:
        _copy(address.to(tl.pointer_type(tl.int64)), width // 8, p_path, count, committed, staging, ROWS, UNITS)
    elif width % 4 == 0:
        _copy(address.to(tl.pointer_type(tl.int32)), width // 4, p_path, count, committed, staging, ROWS, UNITS)
    elif width % 2 == 0:
        _copy(address.to(tl.pointer_type(tl.int16)), width // 2, p_path, count, committed, staging, ROWS, UNITS)
    else:
        _copy(address.to(tl.pointer_type(tl.int8)), width, p_path, count, committed, staging, ROWS, UNITS)


@cache
def _signs(head_dim: int, device: torch.device) -> Tensor:
    return signs(head_dim).to(device)


def _turn(head_dim: int) -> dict[str, Any]:
    """The constants of `_hadamard`."""
    require(
        head_dim >= SMALLEST_PIECE and head_dim & (head_dim - 1) == 0,
        f"heads of {head_dim} values: a power of two from {SMALLEST_PIECE} on is needed",
    )
    return {"D": head_dim, "STEPS": head_dim.bit_length() - 1, "FACTOR": head_dim**-0.5}


def store_rows(
    k: Tensor,
    v: Tensor,
    keys: KeptRows,
    values: KeptRows,
    offset: int = 0,
    at: Tensor | None = None,
    count: Tensor | None = None,
) -> None:
    """See `draftwood.kernels.kv_store.StoreRows`."""
    rows, groups, width = k.shape
    require(
        k.shape == v.shape and groups == keys.heads == values.heads and keys.rows == values.rows,
        f"k {tuple(k.shape)} and v {tuple(v.shape)} do not go to planes of {keys.heads} and {values.heads} heads",
    )
    require(at is not None or 0 <= offset <= keys.rows - rows, f"{rows} rows at {offset} of {keys.rows}")
    k, v = aligned(k), aligned(v)
    _store_rows[(rows, groups, 2)](
        k, v, *keys.pointers, *values.pointers, _signs(width, k.device), at, count, offset, keys.rows,
        K_ROW=row_stride(k), K_HEAD=k.stride(1), V_ROW=row_stride(v), V_HEAD=v.stride(1), STORE_K=keys.codec.store,
        STORE_V=values.codec.store, TURN_K=keys.codec.rotated, TURN_V=values.codec.rotated, **_turn(width), num_warps=1,
        enable_fp_fusion=False,  # A product and a sum are rounded each, as the planes' own arithmetic does.
    )  # fmt: skip


def rotate_rows(x: Tensor, inverse: bool = False) -> Tensor:
    """See `draftwood.kernels.kv_store.RotateRows`."""
    rows, heads, width = x.shape
    x, out = aligned(x), torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _rotate_rows[(rows, heads)](
        x, _signs(width, x.device), out, ROW=row_stride(x), HEAD=x.stride(1), H=heads, INVERSE=inverse, **_turn(width),
        num_warps=1,
    )  # fmt: skip
    return out


def _units(buffer: Tensor) -> int:
    """The units that a row is copied in."""
    width = buffer.shape[2] * buffer.element_size()
    return width // min(width & -width, 8)


def commit_rows(table: RowTable, path: Tensor, count: Tensor, committed: Tensor, staging: int) -> None:
    """See `draftwood.kernels.kv_store.CommitRows`."""
    groups, plane_rows, _ = table.buffers[0].shape
    units = triton.next_power_of_2(max(_units(buffer) for buffer in table.buffers))
    _commit_rows[(len(table.buffers), groups)](
        table.addresses, path, count, committed, plane_rows, staging, ROWS=_COMMITTED, UNITS=units, num_warps=4
    )
