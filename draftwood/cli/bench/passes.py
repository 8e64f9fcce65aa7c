"""`draftwood bench passes`: what a pass costs by its rows."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.bench.lists import distinct, row_count
from draftwood.cli.loading import open_engine
from draftwood.cli.terminal import plain, steps
from draftwood.errors import UsageError


def passes(
    target: options.TargetOption = "demo",
    rows: Annotated[
        str, typer.Option("--rows", metavar="N,N,...", help="Tokens in a pass, each from 1 to 64.")
    ] = "1,4,8,16",
    forms: Annotated[
        str, typer.Option("--forms", metavar="F,F,...", help="Values of --dtype to compare, each in a load of its own.")
    ] = "auto,bfloat16,float32",
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats", callback=options.within("--repeats", 1), metavar="N", help="Timed passes; the median counts."
        ),
    ] = 9,
    weights: options.WeightsOption = None,
    token_table: options.TableOption = None,
    vram: options.VramOption = None,
    device: options.DeviceOption = options.DeviceName.auto,
) -> None:
    """Time passes of 1, 4, 8... tokens.

    Shows what checking more guesses at once costs on this machine, for each arithmetic.
    """
    counts = tuple(row_count(text) for text in distinct("--rows", rows))
    dtypes = [_dtype(text) for text in distinct("--forms", forms)]
    from draftwood.bench import report
    from draftwood.bench.suites.passes import CONTEXT, as_json, conditions, measure_form, table

    runs = []
    with steps(len(dtypes) * (repeats + 1)) as begin:
        for dtype in dtypes:
            engine = open_engine(
                target,
                None,
                max_context=CONTEXT,
                device=device,
                dtype=dtype,
                spinner=False,
                weights=weights,
                token_table=token_table,
                vram=vram,
                again=dtype != dtypes[0],
            )
            runs.append(measure_form(engine, counts, repeats, begin))
            del engine  # before the next one is loaded
    commit = report.commit()
    plain([*conditions(runs, commit, repeats), "", *table(runs), "", json.dumps(as_json(runs, commit, repeats))])


def _dtype(text: str) -> options.Dtype:
    known = [dtype.value for dtype in options.Dtype]
    if text not in known:
        raise UsageError(f"--forms names {text[:40]!r}, but the forms are {', '.join(known)}.")
    return options.Dtype(text)
