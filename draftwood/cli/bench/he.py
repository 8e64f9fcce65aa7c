"""`draftwood bench he`: speeds of decoding methods on prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.loading import draft_for, open_engine
from draftwood.cli.terminal import output, plain, steps
from draftwood.errors import UsageError


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
