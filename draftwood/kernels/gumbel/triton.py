"""Gumbel argmax in two launches: the best of every 2048 columns, then the best of these.

Maxima are exact, so the split of the columns changes no result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from draftwood.kernels._rows import aligned, require, row_stride
from draftwood.kernels.gumbel.reference import LOWEST_TEMPERATURE

COLUMNS = 2048
"""Columns of a program of the first launch."""

_LOWEST = tl.constexpr(LOWEST_TEMPERATURE)
_SPREAD = tl.constexpr(0x9E3779B9)


@triton.jit
def _mix(x, middle):
    """The reference's mixer; uint32, whose shifts are logical and whose products and sums wrap."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x += middle
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _keyed(x, first, second):
    return _mix(_mix(x ^ first, 0) ^ second, 0)


@triton.jit
def _log_exponential(x):
    """log(-log(1 - u)) of the uniform number that is made of x, uint32.

    Below 1/4, 1 - u would lose the bits that make the noise's long tail, so -log(1 - u) / u is a polynomial there
    (minimax, relative error 2.4e-9). Elsewhere 1 - u is good enough: the result is never near zero.
    """
    u = tl.minimum((x.to(tl.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    p = 0.33377540 * u + 0.08962061
    p = p * u + 0.21422429
    p = p * u + 0.24869384
    p = p * u + 0.33338955
    p = p * u + 0.49999911
    return tl.log(tl.where(u < 0.25, (p * u + 1.0) * u, -tl.log(1.0 - u)))


@triton.jit
def _draw(
    p_logits, p_position, p_seed, p_temperature, p_value, p_id, STRIDE: tl.constexpr, SEED_STRIDE: tl.constexpr,
    TEMPERATURE_STRIDE: tl.constexpr, V: tl.constexpr, SPLITS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, split = tl.program_id(1).to(tl.int64), tl.program_id(0)
    o_v = split * COLUMNS + tl.arange(0, COLUMNS)
    m_v = o_v < V
    b_x = tl.load(p_logits + row * STRIDE + o_v, mask=m_v, other=-float("inf")).to(tl.float32)
    temperature = tl.load(p_temperature + row * TEMPERATURE_STRIDE)
    if temperature > 0:
        seed, position = tl.load(p_seed + row * SEED_STRIDE), tl.load(p_position + row)
        one, two = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
        low, high = position.to(tl.uint32), (position >> 32).to(tl.uint32)
        entry = _keyed(_keyed(low, one ^ _SPREAD, high), two, 0)
        middle = _keyed(_keyed(low, two, high), one, _SPREAD)
        b_key = _keyed(o_v.to(tl.uint32), one, two ^ _SPREAD)
        b_x = b_x * (1.0 / tl.maximum(temperature, _LOWEST)) - _log_exponential(_mix(b_key ^ entry, middle))
    best = tl.max(b_x, 0)
    tl.store(p_value + row * SPLITS + split, best)
    tl.store(p_id + row * SPLITS + split, tl.min(tl.where(m_v & (b_x == best), o_v, V - 1), 0))


@triton.jit
def _best(p_value, p_id, p_out, V: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    o_s = tl.arange(0, BLOCK)
    m_s = o_s < SPLITS
    b_value = tl.load(p_value + row * SPLITS + o_s, mask=m_s, other=-float("inf"))
    b_id = tl.load(p_id + row * SPLITS + o_s, mask=m_s, other=V - 1)
    tl.store(p_out + row, tl.min(tl.where(b_value == tl.max(b_value, 0), b_id, V - 1), 0).to(tl.int64))


def draw_splits(
    logits: Tensor, positions: Tensor, seeds: Tensor, temperatures: Tensor, width: int = COLUMNS
) -> tuple[Tensor, Tensor]:
    """The first launch: value float32 and id int32, [R, V / width], of the best of every `width` columns."""
    (rows, columns), device = logits.shape, logits.device
    require(len(positions) == rows, f"{rows} rows need as many positions, not {len(positions)}")
    for setting in (seeds, temperatures):
        require(setting.shape in ((rows,), (1,)), f"{rows} rows need as many seeds and temperatures, or one")
    logits, splits = aligned(logits), triton.cdiv(columns, width)
    values = torch.empty(rows, splits, device=device)
    ids = torch.empty(rows, splits, dtype=torch.int32, device=device)
    _draw[(splits, rows)](
        logits, positions, seeds, temperatures, values, ids, STRIDE=row_stride(logits),
        SEED_STRIDE=int(len(seeds) > 1), TEMPERATURE_STRIDE=int(len(temperatures) > 1), V=columns, SPLITS=splits,
        COLUMNS=width, num_warps=4,
    )  # fmt: skip
    return values, ids


def gumbel_argmax(logits: Tensor, positions: Tensor, seeds: Tensor, temperatures: Tensor) -> Tensor:
    """See `draftwood.kernels.gumbel.load_gumbel_argmax`."""
    values, ids = draw_splits(logits, positions, seeds, temperatures)
    rows, splits = values.shape
    drawn = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _best[(rows,)](
        values, ids, drawn, V=logits.shape[1], SPLITS=splits, BLOCK=triton.next_power_of_2(splits), num_warps=1
    )
    return drawn
