"""`draftwood bench`: measured, gated, printed with its conditions; one module per suite."""

from __future__ import annotations

import typer

from draftwood.cli.bench import baseline, ctx, guide, he, kv, ops, passes, rounds

app = typer.Typer()


@app.callback(invoke_without_command=True)
def bench(context: typer.Context) -> None:
    """Measure speeds, and what KV types cost.

    Nothing is shown if the methods' tokens differ.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command()(he.he)
app.command()(passes.passes)
app.command()(ops.ops)
app.command("round")(rounds.rounds)
app.command()(baseline.baseline)
app.command()(kv.kv)
app.command()(ctx.ctx)
app.command()(guide.guide)
