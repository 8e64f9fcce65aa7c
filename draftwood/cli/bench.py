"""`draftwood bench`: measured, gated, printed with its conditions."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.loading import draft_for, open_engine
from draftwood.cli.terminal import output, plain, steps
from draftwood.errors import UsageError

app = typer.Typer()


@app.callback(invoke_without_command=True)
def bench(context: typer.Context) -> None:
    """Measure speeds, and what KV types cost.

    Nothing is shown if the methods' tokens differ.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def he(
    target: options.TargetOption = "demo",
    draft: options.DefaultDraftOption = None,
    prompts: Annotated[
        str, typer.Option("--prompts", metavar="NAME", help="Whose: humaneval, or chat (30 chat questions).")
    ] = "humaneval",
    n_gen: Annotated[
        int,
        typer.Option("--n-gen", callback=options.within("--n-gen", 1), metavar="N", help="Tokens a prompt, at most."),
    ] = 128,
    ddtree_budget: Annotated[
        int | None,
        typer.Option(
            "--ddtree-budget",
            callback=options.within("--ddtree-budget", 1, options.MAX_BUDGET),
            metavar="N",
            help="Guesses the model may check at once, 1..63; alone it also picks --method tree.",
        ),
    ] = None,
    ddtree_temp: Annotated[
        float,
        typer.Option(
            "--ddtree-temp",
            metavar="T",
            help="How wide a tree grows: below 1 it trusts the draft's first choices more, above 1 less.",
        ),
    ] = 1.0,
    max_ctx: options.ContextOption = options.DEFAULT_CONTEXT,
    cache_type_k: options.KeyTypeOption = None,
    cache_type_v: options.ValueTypeOption = None,
    draft_type_k: options.DraftKeyTypeOption = None,
    draft_type_v: options.DraftValueTypeOption = None,
    method: Annotated[
        options.MethodName | None, typer.Option("--method", help="Run one method; chain if nothing is said.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option("--compare", metavar="M,M,...", help="Run several methods side by side, as in ar,chain,tree."),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            callback=options.within("--repeats", 1),
            metavar="N",
            help="Runs of each prompt; the median counts.",
        ),
    ] = 1,
    assume_acceptance: options.AssumeOption = None,
    weights: options.WeightsOption = None,
    token_table: options.TableOption = None,
    vram: options.VramOption = None,
    device: options.DeviceOption = options.DeviceName.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.ThreadsOption = None,
) -> None:
    """Time ten HumanEval prompts, or others.

    Prints a table for each method, with --compare also side by side, and one JSON line last.
    """
    names = _methods(method, compare, ddtree_budget)
    if not 0 < ddtree_temp < float("inf"):
        raise UsageError(f"--ddtree-temp is {ddtree_temp}, but must be a number above 0; 1 changes nothing.")
    from draftwood.bench.prompts import PROMPT_SETS, prompts_for

    if prompts not in PROMPT_SETS:
        raise UsageError(f"--prompts is {prompts[:40]!r}, but the sets are {', '.join(PROMPT_SETS)}.")
    from draftwood.bench import report
    from draftwood.bench.gates import require_identical
    from draftwood.bench.prompts.humaneval import prompts_sha256
    from draftwood.bench.suites.he import Method, run_suite
    from draftwood.decode.params import SamplingParams

    params = SamplingParams(max_tokens=n_gen)
    kv, draft_kv = (cache_type_k, cache_type_v), (draft_type_k, draft_type_v)
    engine = open_engine(
        target,
        draft_for(target, draft),
        kv,
        draft_kv,
        max_ctx,
        device,
        dtype,
        threads=threads,
        assume_acceptance=assume_acceptance,
        weights=weights,
        token_table=token_table,
        vram=vram,
    )
    methods = [Method(name) if name == "ar" else Method(name, ddtree_budget, ddtree_temp) for name in names]
    texts = prompts_for(prompts, engine.tokenizer)
    with steps(len(methods) * (1 + len(texts) * repeats)) as begin:
        result = run_suite(engine, texts, methods, params, repeats, begin)
    facts, commit, digest = engine.describe(), report.commit(), prompts_sha256(texts)
    plain(report.conditions(facts, commit, digest, n_gen, repeats))
    plain(result.differences)
    require_identical(result.differences)
    for run in result.methods:
        plain(["", f"method {report.label(run)}", *report.method_table(run)])
    if compare is not None:
        plain(["", report.agreement(result.methods, len(texts) * repeats), ""])
        output().print(report.comparison(result.methods, output()))
        plain(["", *report.legend(result.methods)])
    plain(["", report.json_line(facts, commit, prompts, digest, n_gen, result)])


@app.command()
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
    counts = tuple(_count(text) for text in _distinct("--rows", rows))
    dtypes = [_dtype(text) for text in _distinct("--forms", forms)]
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
            )
            runs.append(measure_form(engine, counts, repeats, begin))
            del engine  # before the next one is loaded
    commit = report.commit()
    plain([*conditions(runs, commit, repeats), "", *table(runs), "", json.dumps(as_json(runs, commit, repeats))])


@app.command()
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
    counts = tuple(_count(text) for text in _distinct("--rows", rows))
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
            runs.append(suite.measure(case, counts, prefill and not suite.is_head(case), repeats))
        for other in others:
            begin(f"{other.name} {other.shape}")
            kernel_runs.append(kernels.measure(other, counts, repeats))
    commit = report.commit()
    lines = [*suite.conditions(limits, model, commit, repeats), ""]
    if runs:
        lines += [*suite.table(runs, counts, limits), ""]
    if kernel_runs:
        lines += [*kernels.table(kernel_runs, counts, limits), ""]
    result = suite.as_json(runs, counts, limits, model, commit, repeats)
    plain([*lines, json.dumps(result | {"kernels": kernels.as_json(kernel_runs, limits)})])


@app.command("round")
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

    asked = [suite.wanted(text) for text in _distinct("--rows-list", rows_list)]
    lengths = [parse_tokens(text, "--contexts") for text in _distinct("--contexts", contexts)]
    from draftwood.bench import kv_picture, report, rounds_picture
    from draftwood.engine.config import check_assumption

    check_assumption(assume_acceptance)
    if png is not None:
        kv_picture.blank("--png")  # before the long part
    import torch

    if not torch.cuda.is_available():
        raise UsageError("bench round times rounds captured on a GPU, and this machine has none; bench he times a CPU.")
    from draftwood.bench.suites.ops import measure_limits

    limits = measure_limits()
    capacity = max(lengths) + suite.room(len(asked), repeats)
    engine = open_engine(
        target,
        draft,
        (cache_type_k, cache_type_v),
        (draft_type_k, draft_type_v),
        capacity,
        options.DeviceName.cuda,
        assume_acceptance=assume_acceptance,
        weights=weights,
        token_table=token_table,
        vram=vram,
    )
    timed = suite.Rounds(engine, capacity, assume_acceptance, prefill)
    for one in asked:
        timed.shape(one)  # what cannot be is said before the gates, which take a while
    runs, alone = [], []
    with steps(len(asked) + len(lengths) * (1 + len(asked))) as begin:
        for one in asked:
            begin(f"gates: {one.name}")
            timed.gate(one)
        for length in lengths:
            begin(f"context {length}: the model's pass")
            timed.start(length)
            alone.append(timed.passes(length, repeats))
            for one in asked:
                begin(f"context {length}: {one.name}")
                runs.append(timed.measure(one, length, repeats))
    given = suite.Conditions(
        engine.describe(), engine.synthetic, limits, report.commit(), repeats, prefill, assume_acceptance
    )
    if png is not None:
        rounds_picture.draw(runs, f"{given.facts['target']} on {limits.device}", png)
    result = json.dumps(suite.as_json(given, runs, alone))
    plain([*suite.conditions(given), "", *suite.table(runs, alone), "", result])


@app.command()
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

    asked = [suite.parse_test(text) for text in _distinct("--tests", tests)]
    behind = None if depths is None else [suite.check_depth(_depth(text)) for text in _distinct("--depths", depths)]
    from draftwood.bench import report

    engine = open_engine(
        target,
        None,
        (cache_type_k, cache_type_v),
        device=device,
        dtype=dtype,
        threads=threads,
        weights=weights,
        token_table=token_table,
        vram=vram,
    )
    found = suite.depths_for(engine, asked, behind)
    with steps(len(found) * (1 + len(asked))) as begin:
        limits = suite.limits_for(engine, asked)
        runs = suite.measure(engine, asked, found, repeats, begin)
    about, commit = suite.subject(engine), report.commit()
    result = json.dumps(suite.as_json(about, runs, commit, repeats, limits))
    shares = suite.shares(runs, limits)
    plain([*suite.conditions(about, commit, repeats), "", *suite.table(about, runs), *shares, "", result])


@app.command()
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
    names = None if kv_types is None else _distinct("--kv", kv_types)
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


def _distinct(flag: str, text: str) -> list[str]:
    """The parts of a list with commas, none of them twice."""
    parts = [part.strip() for part in text.split(",")]
    if len(set(parts)) < len(parts):
        raise UsageError(f"{flag} is {text[:80]!r}, but each value can be named once.")
    return parts


def _count(text: str) -> int:
    """A number of rows; 64 fit into a pass."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= options.MAX_BUDGET + 1:
        raise UsageError(f"--rows names {text[:40]!r}, but a pass has 1 to {options.MAX_BUDGET + 1} rows.")
    return int(text)


def _depth(text: str) -> int:
    from draftwood.planner.hardware import parse_tokens

    return 0 if text == "0" else parse_tokens(text, "--depths")


def _dtype(text: str) -> options.Dtype:
    known = [dtype.value for dtype in options.Dtype]
    if text not in known:
        raise UsageError(f"--forms names {text[:40]!r}, but the forms are {', '.join(known)}.")
    return options.Dtype(text)


def _methods(method: options.MethodName | None, compare: str | None, budget: int | None) -> list[str]:
    """The methods to run: those compared, or the one named, or what the budget implies."""
    if compare is None:
        return [method.value if method is not None else "chain" if budget is None else "tree"]
    if method is not None:
        raise UsageError("--method runs one method and --compare several; give one of the two.")
    known = [name.value for name in options.MethodName]
    names = [name.strip() for name in compare.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"--compare names {name[:40]!r}, but the methods are {', '.join(known)}.")
    if len(set(names)) < len(names):
        raise UsageError(f"--compare is {compare[:80]!r}, but each method can be named once.")
    return names
