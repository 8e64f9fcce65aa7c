"""What lies beside the matrices, timed: each kernel correct first, then microseconds and bytes over time.

Calls of one captured graph have distinct inputs, up to 64 of them, and before each replay a buffer of four times the L2
is read, so that every input comes from memory, as a matrix of `ops` does. In a pass small inputs come from the L2: what
is shown for them is a ceiling. Bytes are those that a call must read and write once, as each case states them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from draftwood.bench.measure import Sample
from draftwood.bench.suites.kernel_cases.base import FLOATS, Case, Kernel, Work
from draftwood.bench.suites.ops import COPIED, Limits, timed
from draftwood.errors import DraftwoodError

FEWEST_CALLS = 4
"""Of a captured graph."""


@dataclass(frozen=True)
class KernelRun:
    """Microseconds, bytes and operations of a call by rows; by 0 where rows do not matter."""

    case: Case
    times: dict[int, Sample]
    moved: dict[int, int]
    operations: dict[int, int]


def measure(case: Case, rows: tuple[int, ...], repeats: int) -> KernelRun:
    """Gate, then times; a DraftwoodError where the gate is red."""
    torch.cuda.empty_cache()
    kernel = case.make()
    check(case, kernel)
    unread = torch.zeros(COPIED // FLOATS, device="cuda")
    run = KernelRun(case, {}, {}, {})
    for count in rows if case.when == "pass" else (0,):
        work = kernel.work(count)
        number = max(FEWEST_CALLS, len(work.calls))

        def calls(work: Work = work, number: int = number) -> object:
            return [work.calls[call % len(work.calls)]() for call in range(number)]

        def before(work: Work = work) -> None:
            if work.reset is not None:
                work.reset()
            unread.sum()

        run.times[count] = timed(calls, number, repeats, before)
        run.moved[count], run.operations[count] = work.moved, work.operations
    return run


def check(case: Case, kernel: Kernel) -> None:
    """A DraftwoodError where the gate is red."""
    error = kernel.gate()
    if not error <= 1:
        raise DraftwoodError(
            f"{case.name} {case.shape} is off by {error:.3g} times what is allowed; no speed is shown."
        )


def _cell(run: KernelRun, rows: int, limits: Limits) -> str:
    """Microseconds, and the share from one percent on."""
    found = share(run, rows, limits)
    return f"{run.times[rows].middle:.1f} us" + (f" {found:.0f} %" if found >= 1 else "")


def share(run: KernelRun, rows: int, limits: Limits) -> float:
    """Percent of the matrix rate where operations are counted, of the read bandwidth elsewhere."""
    work, most = (run.operations[rows], limits.rate) if run.operations[rows] else (run.moved[rows], limits.bandwidth)
    return 100 * work / run.times[rows].middle * 1e6 / most


def table(runs: list[KernelRun], rows: tuple[int, ...], limits: Limits) -> list[str]:
    """Kernels of a pass down, with rows across; then those of a round or a prompt."""
    passes, others = [run for run in runs if run.case.when == "pass"], [run for run in runs if run.case.when != "pass"]
    lines = []
    if passes:
        head = f"{'kernels of a pass':<26}{'shape':<30}{f'MB at {rows[-1]}':>9}"
        lines.append(head + "".join(f"{f'{n} rows':>15}" for n in rows) + "   bytes of")
        lines.append("-" * (len(lines[0]) + 32))
        for run in passes:
            cells = "".join(f"{_cell(run, n, limits):>15}" for n in rows)
            facts = f"{run.case.name:<26}{run.case.shape:<30}{run.moved[rows[-1]] / 1e6:>9.2f}"
            lines.append(f"{facts}{cells}   {run.case.counted}")
        lines.append("")
    if others:
        lines.append(f"{'of a round or a prompt':<26}{'shape':<30}{'MB':>9}{'time':>20}   bytes of")
        lines.append("-" * (len(lines[-1]) + 32))
        for run in others:
            facts = f"{run.case.name:<26}{run.case.shape:<30}{run.moved[0] / 1e6:>9.2f}"
            rate = " of the matrix rate" if run.operations[0] else ""
            lines.append(f"{facts}{_cell(run, 0, limits):>20}   {run.case.counted}{rate and f';{rate}'}")
        lines.append("")
    widest = max(time.spread_percent for run in runs for time in run.times.values())
    lines.append(
        "percent of the read bandwidth in the bytes named, of the matrix rate in causal operations for a prompt's "
        f"attention; inputs are not in the L2; widest spread of a median {widest:.0f} %"
    )
    return lines


def as_json(runs: list[KernelRun], limits: Limits) -> list[dict[str, Any]]:
    """The same for programs; by rows, or by "0" where they do not matter."""
    return [
        {
            "name": run.case.name,
            "shape": run.case.shape,
            "when": run.case.when,
            "bytes_of": run.case.counted,
            "bytes": {str(n): moved for n, moved in run.moved.items()},
            "operations": {str(n): number for n, number in run.operations.items() if number},
            "microseconds": {str(n): round(time.middle, 2) for n, time in run.times.items()},
            "spread_percent": {str(n): round(time.spread_percent, 1) for n, time in run.times.items()},
            "share_percent": {str(n): round(share(run, n, limits), 1) for n in run.times},
            "share_of": "matrix rate" if any(run.operations.values()) else "read bandwidth",
        }
        for run in runs
    ]
