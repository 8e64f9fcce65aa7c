"""`draftwood bench guide`: which KV type and draft for which context, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.bench import sweeping
from draftwood.cli.bench.measurement import Job, Measurement, Wishes, loading, require_sound, write
from draftwood.cli.loading import draft_located, kv_name
from draftwood.cli.terminal import plain


def guide(
    target: options.TargetOption = "demo",
    draft: options.DefaultDraftOption = None,
    draft_quant: sweeping.QuantOption = None,
    contexts: sweeping.ContextsOption = None,
    kv: Annotated[
        str, typer.Option("--kv", metavar="T,K/V,...", help="KV types to weigh, as in q8_0,q4_0,q8_0/tq3_0.")
    ] = "q8_0,q4_0,tq3_0",
    draft_type_k: options.DraftKeyTypeOption = None,
    draft_type_v: options.DraftValueTypeOption = None,
    round_: sweeping.RoundOption = None,
    n_gen: sweeping.GenOption = 128,
    repeats: sweeping.RepeatsOption = 1,
    text: sweeping.TextOption = None,
    assume_acceptance: options.AssumeOption = None,
    limit: sweeping.LimitOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Also write guide.md, guide.json and guide.png there (needs matplotlib)."
        ),
    ] = None,
    weights: options.WeightsOption = None,
    token_table: options.TableOption = None,
    vram: options.VramOption = None,
    device: options.DeviceOption = options.DeviceName.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.ThreadsOption = None,
) -> None:
    """Find which KV type and draft to take for which context.

    Measures, at each length, every pair that the planner finds room for, and picks by the planner's rule. --limit and
    Ctrl-C end it with what was measured until then.
    """
    from draftwood.bench.clock import Clock, parse_limit

    clock = Clock(None if limit is None else parse_limit(limit))
    pairs = sweeping.pairs_of(kv, None, None)
    names = sweeping.drafts_of(target, draft, draft_quant)
    own = kv_name(draft_type_k, draft_type_v) or "auto"
    from draftwood.bench import ctx_report, guide_report, kv_picture, report
    from draftwood.bench.suites import guide as suite
    from draftwood.engine.config import EngineConfig
    from draftwood.engine.memory import take_stock
    from draftwood.engine.planning import room

    config = EngineConfig(
        target, draft_kv=own, dtype=dtype, weights=weights or "auto", token_table=token_table or "auto", vram=vram
    )
    if out is not None:
        kv_picture.blank()  # before the long part
    where, about, points = sweeping.ground(target, contexts, pairs, round_, n_gen, assume_acceptance, device)
    there = suite.Room(about, *room(config, None if where == "cpu" else take_stock()), config, n_gen)
    planned = {name: there.weigh(draft_located(name), sweeping.short(name), pairs, points) for name in names}
    suite.require_some(list(planned.values()), there)
    jobs = [
        Job(name, pair, fitting) for name, found in planned.items() for pair in pairs for fitting in found.fitting(pair)
    ]

    wishes = Wishes(round_, n_gen, repeats, text, assume_acceptance)
    kinds = draft_type_k, draft_type_v
    cap = None if where == "cpu" else vram  # on a CPU it is a thought, and no limit
    load = loading(target, kinds, device, dtype, wishes, threads, weights, token_table, cap)
    done = Measurement(load, jobs, wishes, clock).run()
    require_sound(done)
    given = ctx_report.Conditions(done.facts, done.synthetic, done.trial, done.prompt, report.commit(), done.ended)
    entries = suite.entries(list(planned.values()), done.series, points)
    fits = guide_report.fits(there, "--vram" if vram else "this machine's memory" if where == "cpu" else "the GPU's")
    line = json.dumps(guide_report.as_json(entries, given, there.usable, done.series))
    if out is not None:
        page = guide_report.markdown(entries, given, fits, done.series)
        write(out, "guide", page, line, done.series, ctx_report.caption(given))
    plain([*ctx_report.conditions(given), fits, "", *guide_report.table(entries, given), "", line])
    if done.interrupted:
        raise typer.Exit(130)
