"""From products to the next operand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from draftwood.bench.suites.kernel_cases.base import FLOATS, Case, Kernel, Setting, Work
from draftwood.kernels.delta_rule import DeltaShape
from draftwood.kernels.layouts import BLOCK, LAYOUTS, OUTPUTS, STEP
from draftwood.kernels.linear.packing import PackedMatrix
from draftwood.kernels.operand import reference
from draftwood.kernels.scratch import parts_of

if TYPE_CHECKING:
    from draftwood.kernels.linear.triton import Columns, Joined, Parts, Staged


def _joined(setting: Setting, outputs: tuple[int, ...], inputs: int) -> Joined:
    """Matrices without weights, joined: a product's parts are made up, and only its places and factors are read."""
    from draftwood.kernels.linear import triton

    matrices = []
    for real in outputs:
        padded = real + -real % OUTPUTS
        words = torch.empty(padded // BLOCK, inputs // STEP, 32, 4, 0, dtype=torch.int32, device=setting.device)
        factor = torch.ldexp(torch.ones(padded, device=setting.device), setting.random(padded).int())
        matrices.append(PackedMatrix(LAYOUTS["Q8_0"], real, inputs, words, None, None, None, factor))
    return triton.join(matrices)


def _parts(setting: Setting, joined: Joined, rows: int) -> Parts:
    """A product of so many rows that was never multiplied."""
    from draftwood.kernels.linear import triton

    device = torch.device(setting.device)
    tiling, (outputs, inputs) = triton.tiling_of(device), joined.padded
    _, padded = triton.padded_rows(rows, tiling)
    programs = triton.programs_of(outputs, inputs, device)
    most = parts_of(outputs // tiling.outputs, inputs // STEP, programs)
    return triton.Parts(
        setting.random(most, padded, outputs, seed=4), joined, torch.ones(padded, device=device), rows, programs
    )


def _copies(parts: Parts, count: int) -> list[Parts]:
    return [parts, *(replace(parts, parts=parts.parts.clone()) for _ in range(count - 1))]


def _part_bytes(columns: Columns) -> int:
    """The parts of these columns that there are."""
    from draftwood.kernels.linear import triton

    parts = columns.parts
    (outputs, inputs), tile = parts.joined.padded, triton.tiling_of(parts.parts.device).outputs
    steps, tiles = inputs // STEP, outputs // tile
    program = [((step + 1) * parts.programs - 1) // (tiles * steps) for step in range(tiles * steps)]
    counts = torch.tensor([program[(at + 1) * steps - 1] - program[at * steps] + 1 for at in range(tiles)])
    places = columns.first + torch.arange(columns.runs)[:, None] * columns.stride + torch.arange(columns.width)
    return FLOATS * parts.count * int(counts[places // tile].sum())


def _operand_error(made: Staged, expected: Tensor) -> float:
    """By what rounding to a half takes off; the order of places is undone."""
    halves = made.halves[: made.count].float()
    inputs = halves.reshape(len(halves), -1, 16, 4, 2).permute(0, 1, 3, 2, 4).reshape(len(halves), -1)
    factor = made.factor[: made.count, None]
    allowed = 2.0**-11 * 1.02 * expected.abs() + 2.0**-24 * factor
    return float(((inputs[:, : expected.shape[1]] * factor - expected).abs() / allowed).max())


def _operand(
    setting: Setting,
    outputs: tuple[int, ...],
    inputs: int,
    columns: Callable[[Parts], Columns],
    more: int,
    call: Callable[[Parts, Tensor], Staged],
    expected: Callable[[Parts, Tensor], Tensor],
    width: int,
) -> Kernel:
    """A kernel that reads `columns` of a product and, for each row, `width` other values. more: bytes of a row that
    are not parts."""
    joined = _joined(setting, outputs, inputs)

    def gate() -> float:
        parts, other = _parts(setting, joined, setting.gated), setting.random(setting.gated, width, seed=1)
        return _operand_error(call(parts, other.clone()), expected(parts, other.clone()))

    def work(rows: int) -> Work:
        parts = _parts(setting, joined, rows)
        moved = _part_bytes(columns(parts)) + rows * more
        copies = _copies(parts, setting.sets(moved))
        others = setting.random(len(copies), rows, width, seed=1)
        return Work([partial(call, p, x) for p, x in zip(copies, others, strict=True)], moved)

    return Kernel(gate, work)


def add_norm(setting: Setting, inputs: int) -> Case:
    """Residual addition and norm, behind a product with so many inputs."""
    width, eps = setting.spec.hidden, setting.spec.eps

    def make() -> Kernel:
        from draftwood.kernels.operand import triton

        weight = setting.random(width, seed=2)
        return _operand(
            setting, (width,), inputs, lambda parts: parts.columns(0, width), width * (4 + 4 + 2),
            lambda parts, x: triton.add_norm(x, parts, weight, eps),
            lambda parts, x: reference.add_norm(x, parts.tensor(), weight, eps), width,
        )  # fmt: skip

    return Case("operand.add_norm", f"{width} of {inputs}", "parts, residual in and out, operand", make)


def silu_gate(setting: Setting) -> Case:
    """The gate of the feed-forward network."""
    width, hidden = setting.spec.ffn, setting.spec.hidden

    def make() -> Kernel:
        from draftwood.kernels.operand import triton

        return _operand(
            setting, (2 * width,), hidden, lambda parts: parts.columns(0, 2 * width), width * 2,
            lambda parts, _: triton.silu_gate(parts), lambda parts, _: reference.silu_gate(parts.tensor()), 1,
        )  # fmt: skip

    return Case("operand.silu_gate", f"{width}", "parts, operand", make)


def gated_norm(setting: Setting, shape: DeltaShape) -> Case:
    """The norm of the gated delta net's heads."""
    heads, size, channels = shape.value_heads, shape.value_dim, shape.channels
    width = heads * size

    def make() -> Kernel:
        from draftwood.kernels.operand import triton

        norm = setting.random(size, seed=2)

        def z(parts: Parts) -> Columns:
            return parts.columns(channels, channels + width)

        def expected(parts: Parts, mixed: Tensor) -> Tensor:
            gates = parts.tensor()[:, channels : channels + width]
            return reference.gated_norm(mixed.unflatten(1, (heads, size)), gates, norm, shape.eps)

        return _operand(
            setting, (channels, width, heads, heads), setting.spec.hidden, z, width * (4 + 2),
            lambda parts, mixed: triton.gated_norm(mixed.unflatten(1, (heads, size)), z(parts), norm, shape.eps),
            expected, width,
        )  # fmt: skip

    return Case("operand.gated_norm", f"{heads} x {size}", "parts, mixed, operand", make)


def gate(setting: Setting) -> Case:
    """The output gate of attention."""
    heads, size = setting.spec.heads, setting.spec.head_dim
    width = heads * size

    def make() -> Kernel:
        from draftwood.kernels.operand import triton

        def gates(parts: Parts) -> Columns:
            return parts.columns(0, 2 * width).every(2 * size, size, 2 * size)

        def expected(parts: Parts, mixed: Tensor) -> Tensor:
            both = parts.tensor()[:, : 2 * width].unflatten(1, (heads, 2, size))
            return reference.gate(mixed, both[:, :, 1].flatten(1))

        return _operand(
            setting, (2 * width, setting.kv_width, setting.kv_width), setting.spec.hidden, gates, width * (4 + 2),
            lambda parts, mixed: triton.gate(mixed, gates(parts)), expected, width,
        )  # fmt: skip

    return Case("operand.gate", f"{heads} x {size}", "parts, mixed, operand", make)
