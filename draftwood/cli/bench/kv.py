"""`draftwood bench kv`: what KV types cost in fidelity."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.bench.lists import distinct
from draftwood.cli.loading import draft_for, open_engine
from draftwood.cli.terminal import plain, steps
from draftwood.errors import UsageError


def kv(
    target: options.TargetOption = "demo",
    draft: options.DefaultDraftOption = None,
    kv_types: Annotated[
        str | None,
        typer.Option(
            "--kv",
            metavar="T,K/V,...",
            help="KV types, as in q8_0,q8_0/tq3_0; if left out all that fit the model, and some pairs.",
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", callback=options.within("--tokens", 1), metavar="N", help="Tokens of text.")
    ] = 20_000,
    window: Annotated[
        int,
        typer.Option(
            "--window", callback=options.within("--window", 16), metavar="N", help="Tokens that are read at a time."
        ),
    ] = 2048,
    n_gen: Annotated[
        int,
        typer.Option(
            "--n-gen", callback=options.within("--n-gen", 1), metavar="N", help="Tokens a drafted prompt, at most."
        ),
    ] = 64,
    skip_acceptance: Annotated[
        bool, typer.Option("--skip-acceptance", help="Measure no acceptance lengths, which need a draft.")
    ] = False,
    skip_unrotated: Annotated[
        bool, typer.Option("--skip-unrotated", help="Leave out what some types would be without their rotation.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Also write kv.md, kv.json and kv.png there (needs matplotlib)."),
    ] = None,
    weights: options.WeightsOption = None,
    token_table: options.TableOption = None,
    vram: options.VramOption = None,
    device: options.DeviceOption = options.DeviceName.auto,
    dtype: Annotated[
        options.Dtype,
        typer.Option("--dtype", help="Arithmetic of the target; any but float32 adds rounding of its own."),
    ] = options.Dtype.float32,
    threads: options.ThreadsOption = None,
) -> None:
    """Measure what KV types cost in fidelity.

    Reads real text over each and compares the odds of every next token with those over f16. All of it takes about 45
    minutes for the demo model on two cores; Ctrl-C ends with what was measured until then.
    """
    names = None if kv_types is None else distinct("--kv", kv_types)
    from draftwood.cache.registry import kv_pair

    for name in names or ():
        kv_pair(name)  # an unknown type is said before the long part
    from draftwood.bench import kv_picture, kv_report, report
    from draftwood.bench.gates import require_identical
    from draftwood.bench.prompts import prompts_for, running_text
    from draftwood.bench.prompts.humaneval import prompts_sha256
    from draftwood.bench.suites.kv import METHODS, Fidelity, cases

    if out is not None:
        kv_picture.blank()  # before the long part
        out.mkdir(parents=True, exist_ok=True)
    named = None if skip_acceptance else draft_for(target, draft)
    engine = open_engine(
        target, named, device=device, dtype=dtype, threads=threads, weights=weights, token_table=token_table, vram=vram
    )
    facts, spec = engine.describe(), engine.target.model.spec
    if engine.tokenizer is None:
        raise UsageError(f"{facts['target']} has no tokenizer, so it cannot read a text.")
    measured = Fidelity(engine, cases(names, spec.head_dim, not skip_unrotated))
    text, prompts = running_text.running_text(), prompts_for("humaneval", engine.tokenizer)
    texts = running_text.windows(engine.tokenizer, text, tokens, window)
    drafts = 0 if skip_acceptance else len(measured.drafted)
    complete = False
    with (
        suppress(KeyboardInterrupt),
        steps(len(texts) * (1 + len(measured.cases)) + drafts * len(METHODS) * (1 + len(prompts))) as begin,
    ):
        measured.read(texts, begin)
        if not skip_acceptance:
            measured.draft(prompts, n_gen, begin)
        complete = True
    if not measured.tokens:
        raise KeyboardInterrupt
    plain(measured.differences)
    require_identical(measured.differences)
    given = kv_report.Conditions(
        facts,
        spec,
        report.commit(),
        running_text.ABOUT,
        running_text.text_sha256(text),
        measured.tokens,
        window,
        complete,
        0 if skip_acceptance else n_gen,
        prompts_sha256(prompts),
    )
    rows = measured.rows()
    line = json.dumps(kv_report.as_json(given, rows))
    if out is not None:
        (out / "kv.md").write_text(kv_report.markdown(given, rows), encoding="utf-8")
        (out / "kv.json").write_text(line + "\n", encoding="utf-8")
        kv_picture.draw(rows, f"{facts['target']}, {measured.tokens:,} tokens", out / "kv.png")
    plain([*kv_report.conditions(given), "", *kv_report.table(rows), "", *kv_report.legend(), "", line])
    if not complete:
        raise typer.Exit(130)
