# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Attention of a draft's block on a GPU, the keys split over programs (README.md beside this file).

Letters: B rows of the block, C committed rows, H query heads, G KV heads, D head width, W window, S parts of the keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.batch import MAX_ROWS
from draftwood.kernels._rows import aligned, require
from draftwood.kernels.codec import KeptRows
from draftwood.kernels.scratch import block_parts, block_shapes

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class BlockTile:
    """Of a program: query rows (of the block and of the heads that share keys), keys of a step, warps, stages."""

    rows: int
    keys: int
    warps: int
    stages: int


NVIDIA = {64: BlockTile(64, 64, 4, 3), 128: BlockTile(64, 64, 4, 2), 256: BlockTile(64, 32, 8, 2)}
"""By D, within 99 KiB of shared memory."""

AMD = {64: BlockTile(64, 32, 4, 1), 128: BlockTile(32, 16, 4, 1)}
"""On RDNA 3 operands of WMMA take twice the registers that they hold: heads of 256 values spill in every tile tried."""


@triton.jit
def _range(p_committed, rows, parts, WINDOW: tl.constexpr, KEYS: tl.constexpr):
    """Committed rows, the first position that any row sees, and the keys of each part."""
    committed = tl.load(p_committed).to(tl.int32)
    begin = tl.maximum(committed + 1 - WINDOW, 0) if WINDOW else 0
    return committed, begin, tl.cdiv(tl.cdiv(committed + rows - begin, parts), KEYS) * KEYS


@triton.jit
def _attend_block(
    p_q, p_k0, p_k1, p_k2, p_k3, p_v0, p_v1, p_v2, p_v3, p_committed, p_first, p_mixed, p_peak, p_total, k_rows, v_rows,
    rows, scale, LOAD_K: tl.constexpr, LOAD_V: tl.constexpr, H: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    WINDOW: tl.constexpr, CAUSAL: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One part of the keys: what came of it, [S, B, H, D], its largest exponents and its sums, [S, B, H].

    scale: of a score to the exponent of 2. k_rows, v_rows: rows of a head.
    """
    SHARING: tl.constexpr = H // G
    part, head, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    committed, begin, count = _range(p_committed, rows, tl.num_programs(0), WINDOW, KEYS)
    end = committed + rows
    low = begin + part * count
    if low < end:
        first = tl.load(p_first).to(tl.int32)
        o_m, o_d = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
        o_row = o_m // SHARING
        m_rows = o_row < rows
        o_place = o_row * H + head * SHARING + o_m % SHARING
        place = o_place[:, None] * D + o_d[None, :]
        b_q = tl.load(p_q + place, mask=m_rows[:, None], other=0.0).to(tl.float16)
        b_peak = tl.full([ROWS], -float("inf"), tl.float32)
        b_total = tl.zeros([ROWS], tl.float32)
        b_mixed = tl.zeros([ROWS, D], tl.float32)
        k_base, v_base = head.to(tl.int64) * k_rows, head.to(tl.int64) * v_rows
        for at in range(low, tl.minimum(low + count, end), KEYS):
            o_keys = at + tl.arange(0, KEYS)
            o_kept = tl.minimum(o_keys, end - 1) - first
            m_kept = tl.full([KEYS], True, tl.int1)
            b_k = LOAD_K((p_k0, p_k1, p_k2, p_k3), k_base, o_kept, m_kept, 0, D, D)
            b_v = LOAD_V((p_v0, p_v1, p_v2, p_v3), v_base, o_kept, m_kept, 0, D, D)
            b_scores = tl.dot(b_q, tl.trans(b_k)) * scale
            ahead = o_keys[None, :] - (committed + o_row)[:, None]
            m_seen = (o_keys < end)[None, :]
            if WINDOW:
                m_seen &= ahead > -WINDOW
            if CAUSAL:
                m_seen &= ahead <= 0
            elif WINDOW:
                m_seen &= ahead < WINDOW
            b_scores = tl.where(m_seen, b_scores, -float("inf"))
            b_top = tl.maximum(b_peak, tl.max(b_scores, 1))
            # A row may see none of a part's keys.
            b_from = tl.where(b_top == -float("inf"), 0.0, b_top)
            b_weights = tl.exp2(b_scores - b_from[:, None])
            b_keep = tl.exp2(b_peak - b_from)
            b_total = b_total * b_keep + tl.sum(b_weights, 1)
            b_mixed = tl.dot(b_weights.to(tl.float16), b_v, b_mixed * b_keep[:, None])
            b_peak = b_top
        o_part = part.to(tl.int64) * rows * H
        tl.store(p_peak + o_part + o_place, b_peak, mask=m_rows)
        tl.store(p_total + o_part + o_place, b_total, mask=m_rows)
        tl.store(p_mixed + o_part * D + place, b_mixed, mask=m_rows[:, None])


@triton.jit
def _combine(
    p_mixed, p_peak, p_total, p_committed, p_out, rows, parts, H: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr,
    KEYS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The parts of a row and head, weighed by their sums."""
    place = tl.program_id(0)
    committed, begin, count = _range(p_committed, rows, parts, WINDOW, KEYS)
    o_parts, o_d = tl.arange(0, PARTS), tl.arange(0, D)
    m_parts = o_parts < tl.cdiv(committed + rows - begin, count)
    o_at = o_parts * rows * H + place
    b_peak = tl.load(p_peak + o_at, mask=m_parts, other=-float("inf"))
    b_total = tl.load(p_total + o_at, mask=m_parts, other=0.0)
    b_mixed = tl.load(p_mixed + (o_at[:, None] * D + o_d[None, :]), mask=m_parts[:, None], other=0.0)
    b_weight = tl.exp2(b_peak - tl.max(b_peak, 0))
    b_sum = tl.sum(b_mixed * b_weight[:, None], 0)
    tl.store(p_out + place * D + o_d, (b_sum / tl.sum(b_total * b_weight, 0)).to(p_out.dtype.element_ty))


def tiles() -> dict[int, BlockTile]:
    """The tiles of the machine's devices by D."""
    return NVIDIA if torch.version.hip is None else AMD


def parts_of(keys: int, programs: int, device: torch.device) -> int:
    """Parts for up to `keys` steps of keys where a part is that many programs; enough to fill the device."""
    at_once = 132 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count
    return block_parts(keys, programs, at_once)


def attend_block(
    query: Tensor,
    keys: KeptRows,
    values: KeptRows,
    committed: Tensor,
    first: Tensor,
    window: int | None,
    causal: bool,
    scale: float,
    out_dtype: torch.dtype = torch.float32,
    tile: BlockTile | None = None,
) -> Tensor:
    """All rows of a draft's block over its context and over themselves, as `block.block_mask` says.

    query: float [B, H, D] in the space of the kept keys, row j at position C + j, B from 1 to MAX_ROWS, H a multiple of
    G. keys, values: G heads; position p lies in row p - first, the block's own rows behind the context. committed,
    first: int64 [1] on the device; the launch does not depend on what they hold. window, causal: see `block_mask`.
    scale: of the scores. Returns [B, H * D] in `out_dtype`, in the space of the kept values. Errors: ValueError for
    other shapes.
    """
    rows, heads, width = query.shape
    groups = keys.heads
    if tile is None:
        require(width in tiles(), f"heads of {width} values have no tile, only those of {', '.join(map(str, tiles()))}")
        tile = tiles()[width]
    require(1 <= rows <= MAX_ROWS, f"a block has 1 to {MAX_ROWS} rows, not {rows}")
    require(values.heads == groups and heads % groups == 0, f"{heads} heads cannot share {groups} of {values.heads}")
    kept = min(keys.rows, values.rows)
    require(max(keys.rows, values.rows) * width < 1 << 31, f"{keys.rows} rows are too many for 32-bit offsets")
    tall = triton.cdiv(rows * (heads // groups), tile.rows)
    seen = kept if window is None else min(kept, window + rows - 1)
    parts = parts_of(triton.cdiv(seen, tile.keys), groups * tall, query.device)
    shapes = block_shapes(parts, rows, heads, width)
    mixed = torch.empty(shapes["mixed"], dtype=torch.float32, device=query.device)
    peak, total = torch.empty(shapes["peak and total"], dtype=torch.float32, device=query.device)
    out = torch.empty(rows, heads * width, dtype=out_dtype, device=query.device)
    _attend_block[(parts, groups, tall)](
        aligned(query.contiguous()), *keys.pointers, *values.pointers, committed, first, mixed, peak, total, keys.rows,
        values.rows, rows, scale * LOG2_E, LOAD_K=keys.codec.load, LOAD_V=values.codec.load, H=heads, G=groups, D=width,
        WINDOW=window or 0, CAUSAL=causal, ROWS=tile.rows, KEYS=tile.keys, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    _combine[(rows * heads,)](
        mixed, peak, total, committed, out, rows, parts, H=heads, D=width, WINDOW=window or 0, KEYS=tile.keys,
        PARTS=triton.next_power_of_2(parts), num_warps=4 if parts * width > 1024 else 1,
    )  # fmt: skip
    return out
