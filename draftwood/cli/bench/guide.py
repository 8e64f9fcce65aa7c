"""`draftwood bench guide`: which KV type and draft for which context, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftwood.cli import options
from draftwood.cli.bench import sweeping
from draftwood.cli.bench.measurement import Job, Measurement, Wishes, require_sound
from draftwood.cli.loading import draft_located, kv_name, open_engine
from draftwood.cli.terminal import plain

if TYPE_CHECKING:
    from draftwood.engine.engine import Engine


def guide(
    target: options.TargetOption = "demo",
    draft: options.DefaultDraftOption = None,
    draft_quant: sweeping.QuantOption = None,
    contexts: sweeping.ContextsOption = None,
    kv: Annotated[
        str, typer.Option("--kv", metavar="T,K/V,...", help="KV types to weigh, as in q8_0,q4_0,q8_0/tq3_0.")
    ] = "q8_0,q4_0,tq3_0",
    vram: Annotated[
        str | None,
        typer.Option(
            "--vram", metavar="SIZE", help="The memory that must do, as in 24GiB; this machine's if left out."
        ),
    ] = None,
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
    from draftwood.bench import ctx_picture, ctx_report, guide_report, kv_picture, memory, report
    from draftwood.bench.suites import guide as suite
    from draftwood.engine.loader import pick_draft_kv
    from draftwood.planner import hardware

    room = None if vram is None else hardware.parse_memory(vram)
    if out is not None:
        kv_picture.blank()  # before the long part
    where, about, points = sweeping.ground(target, contexts, pairs, round_, n_gen, assume_acceptance, device)
    whole = room or memory.of_device(where)
    budget = None if round_ is None else sweeping.parsed(round_).budget
    there = suite.Room(about, whole, hardware.usable(whole), budget, pick_draft_kv(own, where), n_gen)
    drafts = {name: memory.draft_facts(draft_located(name), about, sweeping.short(name)) for name in names}
    planned = {name: there.weigh(sweeping.short(name), facts, pairs, points) for name, facts in drafts.items()}
    suite.require_some(list(planned.values()), there)
    jobs = [
        Job(name, pair, fitting)
        for name, found in planned.items()
        for pair in pairs
        if (fitting := found.fitting(pair))
    ]

    def load(job: Job) -> Engine:
        return open_engine(
            target,
            job.draft,
            (job.kv[0].name, job.kv[1].name),
            (draft_type_k, draft_type_v),
            job.points[-1].tokens + n_gen,
            device,
            dtype,
            threads=threads,
            assume_acceptance=assume_acceptance,
        )

    wishes = Wishes(round_, n_gen, repeats, text, assume_acceptance)
    done = Measurement(load, jobs, wishes, clock).run()
    require_sound(done)
    given = ctx_report.Conditions(done.facts, done.synthetic, done.trial, done.prompt, report.commit(), done.ended)
    entries = suite.entries(list(planned.values()), done.series, points)
    fits = guide_report.fits(there, "--vram" if room else "this machine's memory" if where == "cpu" else "the GPU's")
    line = json.dumps(guide_report.as_json(entries, given, there.usable, done.series))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "guide.md").write_text(guide_report.markdown(entries, given, fits, done.series), encoding="utf-8")
        (out / "guide.json").write_text(line + "\n", encoding="utf-8")
        ctx_picture.draw(done.series, ctx_report.caption(given), out / "guide.png")
    plain([*ctx_report.conditions(given), fits, "", *guide_report.table(entries, given), "", line])
    if done.interrupted:
        raise typer.Exit(130)
