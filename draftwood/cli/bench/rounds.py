"""`draftwood bench round`: whole rounds on a GPU, stage by stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.bench.lists import distinct
from draftwood.cli.bench.sweeping import KVListOption, pairs_of
from draftwood.cli.loading import open_engine
from draftwood.cli.terminal import plain, steps
from draftwood.errors import UsageError


def rounds(
    target: options.TargetOption = "synthetic:qwen3.6-27b",
    draft: Annotated[
        str, typer.Option("--draft", metavar="DRAFT", help="A draft model made for the target.")
    ] = "synthetic:qwen3.6-27b-dflash:q8_0",
    rows_list: Annotated[
        str,
        typer.Option("--rows-list", metavar="R,R,...", help="Rounds: ar, chain:N or tree:N, each with N guesses."),
    ] = "chain:15,tree:8,tree:22,tree:40,tree:63,ar",
    contexts: Annotated[
        str, typer.Option("--contexts", metavar="N,N,...", help="Tokens before a round, as in 512 or 128K.")
    ] = "512,16K,128K",
    prefill: Annotated[
        bool, typer.Option("--prefill", help="Read the contexts, which takes a while, instead of making rows up.")
    ] = False,
    weights: options.WeightsOption = None,
    token_table: options.TableOption = None,
    vram: options.VramOption = None,
    assume_acceptance: options.AssumeOption = None,
    kv: KVListOption = None,
    cache_type_k: options.KeyTypeOption = None,
    cache_type_v: options.ValueTypeOption = None,
    draft_type_k: options.DraftKeyTypeOption = None,
    draft_type_v: options.DraftValueTypeOption = None,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats", callback=options.within("--repeats", 9), metavar="N", help="Replays; the median counts."
        ),
    ] = 9,
    png: Annotated[
        Path | None,
        typer.Option("--png", metavar="FILE", help="Also draw the stages of every round (needs matplotlib)."),
    ] = None,
) -> None:
    """Time whole rounds of guessing and checking on a GPU.

    Every stage of a round, the host's part, and the model's pass alone, by number of guesses and length of context,
    after checking that rounds are sane and give the same bits each time.
    """
    from draftwood.bench.suites import rounds as suite
    from draftwood.planner.hardware import parse_tokens

    asked = [suite.wanted(text) for text in distinct("--rows-list", rows_list)]
    lengths = [parse_tokens(text, "--contexts") for text in distinct("--contexts", contexts)]
    pairs = pairs_of(kv, cache_type_k, cache_type_v)
    from draftwood.bench import kv_picture, memory, report, rounds_picture
    from draftwood.cache.registry import kv_label
    from draftwood.engine.config import check_assumption
    from draftwood.engine.loader import pick_kv

    check_assumption(assume_acceptance)
    if png is not None:
        kv_picture.blank("--png")  # before the long part
    import torch

    if not torch.cuda.is_available():
        raise UsageError("bench round times rounds captured on a GPU, and this machine has none; bench he times a CPU.")
    from draftwood.bench.suites.ops import measure_limits

    limits = measure_limits()
    capacity = max(lengths) + suite.room(len(asked), repeats)
    pairs = pairs or [pick_kv("auto", options.DeviceName.cuda)]
    runs, alone = [], []
    for pair in pairs:
        engine = open_engine(
            target,
            draft,
            (pair[0].name, pair[1].name),
            (draft_type_k, draft_type_v),
            capacity,
            options.DeviceName.cuda,
            assume_acceptance=assume_acceptance,
            weights=weights,
            token_table=token_table,
            vram=vram,
            again=pair != pairs[0],
        )
        timed = suite.Rounds(engine, capacity, assume_acceptance, prefill)
        for one in asked:
            timed.shape(one)  # what cannot be is said before the gates, which take a while
        with steps(len(asked) + len(lengths) * (1 + len(asked))) as begin:
            for one in asked:
                begin(f"{timed.kv}: gates: {one.name}")
                timed.gate(one)
            for length in lengths:
                begin(f"{timed.kv}: context {length}: the model's pass")
                timed.start(length)
                alone.append(timed.passes(length, repeats))
                for one in asked:
                    begin(f"{timed.kv}: context {length}: {one.name}")
                    runs.append(timed.measure(one, length, repeats))
        facts, synthetic = engine.describe(), engine.synthetic
        del timed, engine  # before the next one is loaded
        memory.forget()
    facts["kv"] = ", ".join(map(kv_label, pairs))
    given = suite.Conditions(facts, synthetic, limits, report.commit(), repeats, prefill, assume_acceptance)
    if png is not None:
        rounds_picture.draw(runs, f"{given.facts['target']} on {limits.device}", png)
    result = json.dumps(suite.as_json(given, runs, alone))
    plain([*suite.conditions(given), "", *suite.table(runs, alone), "", result])
