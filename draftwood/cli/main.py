"""The `draftwood` command: its subcommands, and how an error becomes one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn, cast

import typer

from draftwood import __version__
from draftwood.cli import bench
from draftwood.cli.chat import chat
from draftwood.cli.demo import demo
from draftwood.cli.doctor import doctor
from draftwood.cli.pull import pull
from draftwood.cli.run import run as run_prompt
from draftwood.errors import DraftwoodError

INTERRUPTED = 130
_LONGEST_MESSAGE = 280

# The base of the errors that the option parser raises; Typer exports only its descendants.
_ParserError = cast(
    type[typer.BadParameter],
    next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException"),
)

app = typer.Typer(
    name="draftwood",
    help="Exact speculative decoding: the same tokens, several times faster.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run_prompt)
app.command("chat")(chat)
app.command("pull")(pull)
app.add_typer(bench.app, name="bench")
app.command("doctor")(doctor)
app.command("demo")(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"draftwood {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Exact speculative decoding: the same tokens, several times faster."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` default to the process's own."""
    try:
        code = app(args=arguments, prog_name="draftwood", standalone_mode=False)
    except DraftwoodError as error:
        return _fail(str(error), error.exit_code)
    except _ParserError as error:
        return _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def run() -> NoReturn:
    """The entry point of the `draftwood` script."""
    sys.exit(main())


def _fail(message: str, code: int) -> int:
    sentence = " ".join(message.split())
    if len(sentence) > _LONGEST_MESSAGE:
        sentence = sentence[: _LONGEST_MESSAGE - 1] + "…"
    print(f"draftwood: error: {sentence}", file=sys.stderr)
    return code
