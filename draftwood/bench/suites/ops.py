"""Every matrix of a model through the GPU kernels: correct first, then microseconds and shares of what the device can.

A matrix counts with its bytes in the GGUF, whatever its layout in memory moves, over the read bandwidth measured in the
same run; prefill with 2 x weights operations a token over the matrix rate measured in the same run. Each timing replays
a captured graph that cycles through distinct copies of a matrix of at least four times the L2.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from draftwood.bench.measure import Sample, sample
from draftwood.engine.graphs import capture
from draftwood.errors import DraftwoodError, UsageError
from draftwood.formats.ggml import BlockType
from draftwood.kernels.dequant import dequantise
from draftwood.kernels.draw import draw
from draftwood.kernels.linear.packing import PackedMatrix, pack
from draftwood.models import known
from draftwood.models.buffers import is_matrix, loaded, projections
from draftwood.models.registry import architecture

if TYPE_CHECKING:
    from draftwood.kernels.linear.triton import Joined

PROMPT = 2048
LARGEST_ERROR = 1e-3

COPIED = 300_000_000
"""Bytes of distinct inputs: four times the L2 of any device, or more."""


@dataclass(frozen=True)
class Case:
    """Matrices as they are launched, and how often the model has them.

    parts: block type and outputs of each; neighbours of one block type are one matrix.
    """

    name: str
    parts: tuple[tuple[BlockType, int], ...]
    inputs: int
    count: int = 1

    @property
    def outputs(self) -> int:
        """Of all of them."""
        return sum(outputs for _, outputs in self.parts)

    @property
    def types(self) -> str:
        """Their block types."""
        return "+".join(block_type.name for block_type, _ in self.parts)

    @property
    def gguf_bytes(self) -> int:
        """Their bytes in the file."""
        return sum(outputs * block_type.row_bytes(self.inputs) for block_type, outputs in self.parts)


@dataclass(frozen=True)
class Limits:
    """What the device did in this run: bytes a second read, and bf16 operations a second in a large product."""

    device: str
    bandwidth: float
    rate: float

    def __str__(self) -> str:
        return (
            f"device {self.device}, reads {self.bandwidth / 1e12:.2f} TB/s, "
            f"bf16 products {self.rate / 1e12:.0f} TFLOP/s"
        )

    def as_json(self) -> dict[str, int]:
        """The two rates for programs."""
        return {
            "read_bytes_per_second": round(self.bandwidth),
            "bf16_operations_per_second": round(self.rate),
        }


@dataclass(frozen=True)
class CaseRun:
    """Microseconds by rows, of the product with rows that are staged already; of a prefill pass; of staging 16 rows."""

    case: Case
    products: dict[int, Sample]
    prefill: Sample | None
    staging: Sample


def target_of(model: str) -> known.KnownModel:
    """What is known of a model of this name; a UsageError lists the names."""
    key = known.key_of(model)
    if key is None:
        raise UsageError(f"no model {model[:40]!r} is known; the known ones are {', '.join(known.names())}.")
    return known.target(key)


def cases(model: str) -> list[Case]:
    """The distinct launches of one pass over a known model."""
    target = target_of(model)
    layers = architecture(target).read_spec(target).layers
    found: dict[Case, int] = {}
    for group in projections(info for info in loaded(target.tensors.values(), layers) if is_matrix(info)):
        runs = [(kind, list(run)) for kind, run in groupby(group, key=lambda info: info.block_type)]
        parts = tuple((kind, sum(info.shape[0] for info in run)) for kind, run in runs)
        case = Case("+".join(info.name.split(".")[-2] for info in group), parts, group[0].shape[1])
        found[case] = found.get(case, 0) + 1
    return [replace(case, count=count) for case, count in found.items()]


def measure_limits() -> Limits:
    """Read two gigabytes, multiply 8192 x 8192 x 8192 in bf16."""
    big = torch.randn(1 << 29, device="cuda")
    read = timed(lambda: [torch.sum(big)], 1)
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    multiply = timed(lambda: [left @ right], 1)
    return Limits(torch.cuda.get_device_name(), big.nbytes / read.middle * 1e6, 2 * 8192**3 / multiply.middle * 1e6)


def measure(case: Case, rows: tuple[int, ...], prefill: bool, repeats: int, layout: str = "fast") -> CaseRun:
    """Gates, then times, in a layout of `kernels.layouts.WEIGHTS`; a DraftwoodError where a gate is red."""
    from draftwood.kernels.linear import triton

    raws = [draw(1, kind, (outputs, case.inputs), case.inputs**-0.5, "cuda") for kind, outputs in case.parts]
    packed = [pack(raw, kind, case.inputs, layout) for raw, (kind, _) in zip(raws, case.parts, strict=True)]
    joined = triton.join(packed)
    x = torch.randn(PROMPT, case.inputs, device="cuda")
    _gate(case, raws, joined, x[:64])
    del raws
    copies = [joined] + [_copy(joined) for _ in range(max(1, -(-COPIED // joined.nbytes)) - 1)]
    products = {}
    for count in rows:
        _, padded = triton.padded_rows(count, triton.tiling_of(x.device))
        staged = triton.stage(x[:count], joined.padded[1], padded)

        def run(staged: tuple[Tensor, Tensor] = staged, count: int = count) -> list[Tensor]:
            return [triton.product(*staged, each, count) for each in copies]

        products[count] = timed(run, len(copies), repeats)
    _, padded = triton.padded_rows(16, triton.tiling_of(x.device))
    staging = timed(lambda: [triton.stage(x[:16], joined.padded[1], padded)[0] for _ in range(20)], 20, repeats)
    whole = timed(lambda: [triton.prefill(x, joined)], 1, repeats) if prefill else None
    return CaseRun(case, products, whole, staging)


def _copy(joined: Joined) -> Joined:
    return replace(joined, matrices=tuple(_copied(matrix) for matrix in joined.matrices))


def _copied(matrix: PackedMatrix) -> PackedMatrix:
    names = "words", "high", "scales", "superscales"
    tensors = {name: tensor for name in names if (tensor := getattr(matrix, name)) is not None}
    return replace(matrix, **{name: tensor.clone() for name, tensor in tensors.items()})


def _gate(case: Case, raws: list[Tensor], joined: Joined, x: Tensor) -> None:
    """Near the exact product of some outputs, and rows alone as in a full pass."""
    from draftwood.kernels.linear import triton

    made, prefilled = triton.decode(x, joined), triton.prefill(x, joined)
    first = 0
    for raw, (kind, outputs) in zip(raws, case.parts, strict=True):
        some = torch.arange(0, outputs, max(1, outputs // 2048), device="cuda")
        exact = x.double() @ dequantise(raw[some], kind).double().T
        for out in (made, prefilled):
            error = float((out[:, first + some].double() - exact).norm() / exact.norm())
            if not error <= LARGEST_ERROR:
                raise DraftwoodError(
                    f"{case.name} is off by {error:.1e}, at most {LARGEST_ERROR:.0e} was expected; no speed is shown."
                )
        first += outputs
    for count in (1, 9, 23):
        if not torch.equal(triton.decode(x[64 - count :].clone(), joined), made[64 - count :]):
            raise DraftwoodError(f"{case.name}: {count} rows have other bits than 64; no speed is shown.")


def timed(
    function: Callable[[], object], calls: int, repeats: int = 9, before: Callable[[], None] | None = None
) -> Sample:
    """Microseconds a call: `function` makes so many, and is replayed as a captured graph.

    before: what is done before each replay, outside its time; the device is busy with it while the graph is launched.
    """
    graph = capture(function, warm=True)
    graph.replay()
    times = []
    for _ in range(repeats):
        if before is not None:
            before()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / calls)
    return sample(times)


def total_microseconds(runs: list[CaseRun], rows: int) -> float:
    """One pass over all matrices."""
    return sum(run.case.count * run.products[rows].middle for run in runs)


def share(runs: list[CaseRun], rows: int, limits: Limits) -> float:
    """Percent of the read bandwidth, in GGUF bytes, over all matrices."""
    total = sum(run.case.count * run.case.gguf_bytes for run in runs)
    return 100 * total / total_microseconds(runs, rows) * 1e6 / limits.bandwidth


def prefill_share(runs: list[CaseRun], limits: Limits) -> float:
    """Percent of the matrix rate over the matrices that every prompt token goes through."""
    timed = [run for run in runs if run.prefill is not None]
    work = sum(2 * run.case.count * run.case.outputs * run.case.inputs * PROMPT for run in timed)
    took = sum(run.case.count * run.prefill.middle for run in timed if run.prefill is not None)
    return 100 * work / took * 1e6 / limits.rate if took else 0.0


def is_head(case: Case) -> bool:
    """Whether it is the head, which a prompt needs for its last token only."""
    return case.name in ("output", "token_embd")


def table(runs: list[CaseRun], rows: tuple[int, ...], limits: Limits) -> list[str]:
    """Matrices down; microseconds and percent of the read bandwidth by rows, prefill in percent of the matrix rate."""
    head = f"{'matrices':<42}{'types':>15}{'shape':>15}{'MB':>7}{'times':>6}"
    lines = [head + "".join(f"{f'{n} rows':>15}" for n in rows) + f"{'prefill':>9}"]
    lines.append("-" * len(lines[0]))
    for run in runs:
        case = run.case
        cells = "".join(
            f"{f'{run.products[n].middle:.1f} us {_percent(case, run.products[n], limits):.0f} %':>15}" for n in rows
        )
        rate = "" if run.prefill is None else f"{prefill_share([run], limits):.0f} %"
        facts = f"{case.types:>15}{f'{case.outputs}x{case.inputs}':>15}{case.gguf_bytes / 1e6:>7.1f}"
        lines.append(f"{case.name:<42}{facts}{case.count:>6}{cells}{rate:>9}")
    lines.append("-" * len(lines[0]))
    cells = "".join(
        f"{f'{total_microseconds(runs, n) / 1000:.2f} ms {share(runs, n, limits):.0f} %':>15}" for n in rows
    )
    lines.append(f"{'one pass over all':<85}{cells}{prefill_share(runs, limits):>7.0f} %")
    widest = max(run.products[n].spread_percent for run in runs for n in rows)
    lines.append(f"percent of the read bandwidth in GGUF bytes; widest spread of a median {widest:.0f} %")
    return lines


def _percent(case: Case, took: Sample, limits: Limits) -> float:
    return 100 * case.gguf_bytes / took.middle * 1e6 / limits.bandwidth


def conditions(limits: Limits, model: str, layout: str, commit: str, repeats: int) -> list[str]:
    """The lines that make the numbers below them mean something."""
    return [
        f"synthetic {model}: random weights in its shapes and block types, {layout} layout",
        str(limits),
        f"draftwood {commit}, torch {torch.__version__}, {repeats} replays each, {time.strftime('%Y-%m-%d')}",
    ]


def as_json(
    runs: list[CaseRun],
    rows: tuple[int, ...],
    limits: Limits,
    model: str,
    layout: str,
    commit: str,
    repeats: int,
) -> dict[str, Any]:
    """The whole measurement for programs."""
    return {
        "bench": "ops",
        "model": f"synthetic:{model}",
        "weights": layout,
        "device": limits.device,
        "commit": commit,
        "repeats": repeats,
        **limits.as_json(),
        "pass": {
            str(n): {
                "microseconds": round(total_microseconds(runs, n), 1),
                "share_percent": round(share(runs, n, limits), 1),
            }
            for n in rows
            if runs
        },
        "prefill_share_percent": round(prefill_share(runs, limits), 1),
        "matrices": [
            {
                "name": run.case.name,
                "types": run.case.types,
                "outputs": run.case.outputs,
                "inputs": run.case.inputs,
                "count": run.case.count,
                "gguf_bytes": run.case.gguf_bytes,
                "microseconds": {str(n): round(s.middle, 2) for n, s in run.products.items()},
                "spread_percent": {str(n): round(s.spread_percent, 1) for n, s in run.products.items()},
                "share_percent": {str(n): round(_percent(run.case, s, limits), 1) for n, s in run.products.items()},
                "staging_microseconds": round(run.staging.middle, 2),
                "prefill_microseconds": None if run.prefill is None else round(run.prefill.middle, 1),
                "prefill_share_percent": None if run.prefill is None else round(prefill_share([run], limits), 1),
            }
            for run in runs
        ],
    }
