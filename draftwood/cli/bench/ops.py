"""`draftwood bench ops`: every matrix and kernel of a large model on a GPU."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.bench.lists import distinct, row_count
from draftwood.cli.terminal import plain, steps
from draftwood.errors import UsageError
from draftwood.kernels.layouts import WEIGHTS


def ops(
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="A model known by name, whose shapes and types are taken.")
    ] = "qwen3.6-27b",
    rows: Annotated[
        str, typer.Option("--rows", metavar="N,N,...", help="Tokens in a pass, each from 1 to 64.")
    ] = "1,8,16,24,64",
    prefill: Annotated[bool, typer.Option("--prefill/--no-prefill", help="Also time a prompt of 2,048 tokens.")] = True,
    only: Annotated[
        str,
        typer.Option("--only", metavar="NAME", help="Matrices and kernels whose names begin so: ffn, operand, top_k."),
    ] = "",
    weights: Annotated[
        str, typer.Option("--weights", metavar="<fast|compact>", help="How the matrices are kept.")
    ] = "fast",
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats", callback=options.within("--repeats", 1), metavar="N", help="Replays; the median counts."
        ),
    ] = 9,
) -> None:
    """Time every matrix and every kernel of a large model on a GPU.

    Random weights in the model's shapes and block types; no file is needed. Prints microseconds and the share of the
    device's memory bandwidth, after checking that the results are right and, of matrices, rows bitwise alone.
    """
    counts = tuple(row_count(text) for text in distinct("--rows", rows))
    if weights not in WEIGHTS:
        raise UsageError(f"--weights is {weights[:40]!r}; it must be one of {', '.join(WEIGHTS)}.")
    from draftwood.bench.suites import kernel_cases, kernels
    from draftwood.bench.suites import ops as suite

    matrices = suite.cases(model)
    others = [case for case in kernel_cases.cases(model) if prefill or case.when != "prompt"]
    names = dict.fromkeys([case.name for case in matrices] + [case.name for case in others])
    if not any(name.startswith(only) for name in names):
        raise UsageError(f"--only is {only[:40]!r}, but no name begins so; they are {', '.join(names)}.")
    matrices = [case for case in matrices if case.name.startswith(only)]
    others = [case for case in others if case.name.startswith(only)]
    import torch

    if not torch.cuda.is_available():
        raise UsageError("bench ops times GPU kernels, and this machine has no GPU; bench passes times a CPU.")
    from draftwood.bench import report

    limits = suite.measure_limits()
    runs, kernel_runs = [], []
    with steps(len(matrices) + len(others)) as begin:
        for case in matrices:
            begin(f"{case.name} {case.types} {case.outputs} x {case.inputs}")
            runs.append(suite.measure(case, counts, prefill and not suite.is_head(case), repeats, weights))
        for other in others:
            begin(f"{other.name} {other.shape}")
            kernel_runs.append(kernels.measure(other, counts, repeats))
    commit = report.commit()
    lines = [*suite.conditions(limits, model, weights, commit, repeats), ""]
    if runs:
        lines += [*suite.table(runs, counts, limits), ""]
    if kernel_runs:
        lines += [*kernels.table(kernel_runs, counts, limits), ""]
    result = suite.as_json(runs, counts, limits, model, weights, commit, repeats)
    plain([*lines, json.dumps(result | {"kernels": kernels.as_json(kernel_runs, limits)})])
