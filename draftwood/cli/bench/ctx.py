"""`draftwood bench ctx`: reading and decoding by length of context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.bench import sweeping
from draftwood.cli.bench.lists import distinct
from draftwood.cli.loading import open_engine
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
    asked = None if contexts is None else distinct("--contexts", contexts)
    from draftwood.bench import ctx_picture, ctx_report, kv_picture, memory, report
    from draftwood.bench.gates import require_identical
    from draftwood.bench.suites import ctx as suite
    from draftwood.bench.suites.rounds import wanted
    from draftwood.cache.registry import check_width
    from draftwood.engine.config import check_assumption
    from draftwood.engine.loader import pick_device, pick_kv
    from draftwood.planner.hardware import parse_tokens

    check_assumption(assume_acceptance)
    if round_ is not None:
        wanted(round_, "--round")
    if out is not None:
        kv_picture.blank()  # before the long part
    where, spec = pick_device(device), sweeping.header_of(target).spec
    lengths = [parse_tokens(n, "--contexts") for n in asked or suite.usual_contexts(where, spec.context_length)]
    points = tuple(suite.points(lengths, n_gen, spec.context_length))
    pairs = pairs or [pick_kv("auto", where)]
    for pair in pairs:
        check_width(pair, spec.head_dim)
    before = memory.in_use()
    engine = open_engine(
        target,
        names[0],
        draft_kv=(draft_type_k, draft_type_v),
        max_context=points[-1].tokens + n_gen,
        device=device,
        dtype=dtype,
        threads=threads,
        assume_acceptance=assume_acceptance,
    )
    prompt = sweeping.prompt_of(engine, text, points[-1].tokens)
    trial = sweeping.trial_of(engine, round_, n_gen, repeats, assume_acceptance)
    jobs = [sweeping.Job(name, pair, points) for name in names for pair in pairs]
    done = sweeping.measure(engine, jobs, prompt, trial, clock, before)
    differences = [line for one in done.series for row in one.rows for line in row.differences]
    plain(differences)
    require_identical(differences)
    facts = done.engine.describe() | {"draft": ", ".join(dict.fromkeys(one.draft for one in done.series))}
    given = ctx_report.Conditions(facts, done.engine.synthetic, trial, prompt, report.commit(), done.ended)
    line = json.dumps(ctx_report.as_json(given, done.series))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "ctx.md").write_text(ctx_report.markdown(given, done.series), encoding="utf-8")
        (out / "ctx.json").write_text(line + "\n", encoding="utf-8")
        ctx_picture.draw(done.series, ctx_report.caption(given), out / "ctx.png")
    plain([*ctx_report.conditions(given), ""])
    for one in done.series:
        plain([*ctx_report.table(one, trial, done.series), ""])
    plain([*ctx_report.comparison(done.series, trial), "", *ctx_report.legend(given, done.series), "", line])
    if done.interrupted:
        raise typer.Exit(130)
