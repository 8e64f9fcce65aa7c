"""`draftwood bench baseline`: plain speeds in llama-bench's layout."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.bench.lists import distinct
from draftwood.cli.loading import open_engine
from draftwood.cli.terminal import plain, steps


def baseline(
    target: options.TargetOption = "demo",
    tests: Annotated[
        str, typer.Option("--tests", metavar="T,T,...", help="ppN reads N tokens, tgN writes N, one a pass.")
    ] = "pp128,pp512,pp2048,tg128",
    depths: Annotated[
        str | None,
        typer.Option(
            "--depths",
            metavar="N,N,...",
            help="Tokens before them, as in 0 or 4096; if left out 0, on a GPU also 4096 and 16384.",
        ),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option("--repeats", callback=options.within("--repeats", 1), metavar="N", help="Runs of each test."),
    ] = 3,
    cache_type_k: options.KeyTypeOption = None,
    cache_type_v: options.ValueTypeOption = None,
    weights: options.WeightsOption = None,
    token_table: options.TableOption = None,
    vram: options.VramOption = None,
    device: options.DeviceOption = options.DeviceName.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.ThreadsOption = None,
) -> None:
    """Time plain reading and writing, in llama-bench's layout.

    Without a draft: what other engines are compared with.
    """
    from draftwood.bench.suites import baseline as suite

    asked = [suite.parse_test(text) for text in distinct("--tests", tests)]
    behind = None if depths is None else [suite.check_depth(_depth(text)) for text in distinct("--depths", depths)]
    from draftwood.bench import report
    from draftwood.engine.loader import pick_device
    from draftwood.engine.sources import located, open_target
    from draftwood.planner import inventory

    where, source = pick_device(device), open_target(located(target))
    ends = inventory.target_of(source, source.path.name).spec.context_length
    found = suite.depths_for(where, ends, asked, behind)
    engine = open_engine(
        target,
        None,
        (cache_type_k, cache_type_v),
        max_context=suite.capacity(asked, found),
        device=device,
        dtype=dtype,
        threads=threads,
        weights=weights,
        token_table=token_table,
        vram=vram,
    )
    with steps(len(found) * (1 + len(asked))) as begin:
        limits = suite.limits_for(engine, asked)
        runs = suite.measure(engine, asked, found, repeats, begin)
    about, commit = suite.subject(engine), report.commit()
    result = json.dumps(suite.as_json(about, runs, commit, repeats, limits))
    shares = suite.shares(runs, limits)
    plain([*suite.conditions(about, commit, repeats), "", *suite.table(about, runs), *shares, "", result])


def _depth(text: str) -> int:
    from draftwood.planner.hardware import parse_tokens

    return 0 if text == "0" else parse_tokens(text, "--depths")
