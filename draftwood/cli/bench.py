"""`draftwood bench`: measured, gated, printed with its conditions."""

from __future__ import annotations

from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.loading import open_engine
from draftwood.cli.terminal import output, plain, steps
from draftwood.errors import UsageError

app = typer.Typer(help="Measure decoding; no speed is shown if the methods' tokens differ.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure decoding; no speed is shown if the methods' tokens differ."""


@app.command()
def he(
    target: options.TargetOption = "demo",
    draft: options.DraftOption = "lookup",
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
            help="Candidate tokens a round may check, 1..63; alone it also picks --method tree.",
        ),
    ] = None,
    ddtree_temp: Annotated[
        float,
        typer.Option("--ddtree-temp", metavar="T", help="Sharpens (below 1) or flattens the draft's scores."),
    ] = 1.0,
    max_ctx: options.ContextOption = options.DEFAULT_CONTEXT,
    cache_type_k: options.KeyTypeOption = None,
    cache_type_v: options.ValueTypeOption = None,
    method: Annotated[
        options.MethodName | None, typer.Option("--method", help="One method; chain if nothing is said.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="M,M,...", help="Several methods, as in ar,chain,tree.")
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
    device: options.DeviceOption = options.DeviceName.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
) -> None:
    """Ten HumanEval prompts, greedy: a table a method, side by side with --compare, a JSON line last."""
    names = _methods(method, compare, ddtree_budget)
    if not 0 < ddtree_temp < float("inf"):
        raise UsageError(f"--ddtree-temp is {ddtree_temp}, but must be a number above 0; 1 changes nothing.")
    from draftwood.bench import report
    from draftwood.bench.gates import require_identical
    from draftwood.bench.prompts.humaneval import load_prompts, prompts_sha256
    from draftwood.bench.suites.he import Method, run_suite
    from draftwood.decode.params import SamplingParams
    from draftwood.engine.fetch import resolve

    params = SamplingParams(max_tokens=n_gen)
    prompts = load_prompts(resolve("humaneval"))
    engine = open_engine(target, draft, cache_type_k, cache_type_v, max_ctx, device, dtype)
    methods = [Method(name) if name == "ar" else Method(name, ddtree_budget, ddtree_temp) for name in names]
    with steps(len(methods) * (1 + len(prompts) * repeats)) as begin:
        result = run_suite(engine, prompts, methods, params, repeats, begin)
    facts, commit, digest = engine.describe(), report.commit(), prompts_sha256(prompts)
    plain(report.conditions(facts, commit, digest, n_gen, repeats))
    plain(result.differences)
    require_identical(result.differences)
    for run in result.methods:
        plain(["", f"method {report.label(run)}", *report.method_table(run)])
    if compare is not None:
        plain(["", f"identical tokens in all {len(prompts) * len(methods) * repeats} runs", ""])
        output().print(report.comparison_table(result.methods))
    plain(["", report.json_line(facts, commit, digest, n_gen, result)])


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
