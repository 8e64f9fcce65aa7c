"""`draftwood bench ctx`: reading and decoding by length of context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.bench import sweeping
from draftwood.cli.bench.measurement import Job, Measurement, Wishes, loading, require_sound, write
from draftwood.cli.terminal import plain


def ctx(
    target: options.TargetOption = "demo",
    draft: options.DefaultDraftOption = None,
    draft_quant: sweeping.QuantOption = None,
    contexts: sweeping.ContextsOption = None,
    kv: sweeping.KVListOption = None,
    cache_type_k: options.KeyTypeOption = None,
    cache_type_v: options.ValueTypeOption = None,
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
        typer.Option("--out", metavar="DIR", help="Also write ctx.md, ctx.json and ctx.png there (needs matplotlib)."),
    ] = None,
    weights: options.WeightsOption = None,
    token_table: options.TableOption = None,
    vram: options.VramOption = None,
    device: options.DeviceOption = options.DeviceName.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.ThreadsOption = None,
) -> None:
    """Time reading and writing by length of context.

    One prompt grows from each length to the next, once for each KV type. Says first how long it will take; --limit and
    Ctrl-C end it with the rows done so far.
    """
    from draftwood.bench.clock import Clock, parse_limit

    clock = Clock(None if limit is None else parse_limit(limit))
    pairs = sweeping.pairs_of(kv, cache_type_k, cache_type_v)
    names = sweeping.drafts_of(target, draft, draft_quant)
    from draftwood.bench import ctx_report, kv_picture, report
    from draftwood.engine.loader import pick_kv

    if out is not None:
        kv_picture.blank()  # before the long part
    where, _, points = sweeping.ground(target, contexts, pairs, round_, n_gen, assume_acceptance, device)
    pairs = pairs or [pick_kv("auto", where)]

    jobs = [Job(name, pair, tuple(points)) for name in names for pair in pairs]
    wishes = Wishes(round_, n_gen, repeats, text, assume_acceptance)
    kinds = draft_type_k, draft_type_v
    load = loading(target, kinds, device, dtype, wishes, threads, weights, token_table, vram)
    done = Measurement(load, jobs, wishes, clock).run()
    require_sound(done)
    trial = done.trial
    given = ctx_report.Conditions(done.facts, done.synthetic, trial, done.prompt, report.commit(), done.ended)
    line = json.dumps(ctx_report.as_json(given, done.series))
    if out is not None:
        page = ctx_report.markdown(given, done.series)
        write(out, "ctx", page, line, done.series, ctx_report.caption(given))
    plain([*ctx_report.conditions(given), ""])
    for one in done.series:
        plain([*ctx_report.table(one, trial, done.series), ""])
    plain([*ctx_report.comparison(done.series, trial), "", *ctx_report.legend(given, done.series), "", line])
    if done.interrupted:
        raise typer.Exit(130)
