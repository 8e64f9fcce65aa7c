"""The `draftwood` command: its subcommands, and how an error becomes one line and an exit code."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn, cast

import typer

from draftwood import __version__
from draftwood.cli import bench
from draftwood.cli.chat import chat
from draftwood.cli.demo import demo
from draftwood.cli.doctor import doctor
from draftwood.cli.plan import plan
from draftwood.cli.pull import pull
from draftwood.cli.run import run as run_prompt
from draftwood.cli.synth import synth
from draftwood.cli.train import train
from draftwood.errors import DraftwoodError

INTERRUPTED = 130
_LONGEST_MESSAGE = 280
_BOXED_WIDTH = 72
# What torch says on a CPU and on a GPU.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")

# The base of the errors that the option parser raises; Typer exports only its descendants.
_ParserError = cast(
    type[typer.BadParameter],
    next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException"),
)

app = typer.Typer(
    name="draftwood",
    epilog="Start with: draftwood demo",
    add_completion=False,
    # Boxes cut the names of options off where there is no room for them.
    rich_markup_mode="rich" if shutil.get_terminal_size().columns >= _BOXED_WIDTH else None,
    pretty_exceptions_enable=False,
)
app.command("run")(run_prompt)
app.command("chat")(chat)
app.command("pull")(pull)
app.command("plan")(plan)
app.add_typer(bench.app, name="bench")
app.command("doctor")(doctor)
app.command("demo")(demo)
app.command("synth")(synth)
app.command("train")(train)


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
    """Let a language model answer faster without changing a token (exact speculative decoding)."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` default to the process's own."""
    try:
        code = app(args=arguments, prog_name="draftwood", standalone_mode=False)
        sys.stdout.flush()
    except DraftwoodError as error:
        return _fail(str(error), error.exit_code)
    except _ParserError as error:
        context = getattr(error, "ctx", None)
        hint = f" See `{context.command_path} --help`." if context is not None else ""
        return _fail(error.format_message().rstrip(".") + "." + hint, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        return 1
    except OSError as error:
        if error.errno is None:
            raise
        where = "the output" if error.filename is None else str(error.filename)
        return _fail(f"cannot use {where}: {error.strerror}.", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _NO_MEMORY):
            raise
        return _fail("there is not enough memory for this; try a smaller --max-ctx, -ctk q8_0 or a smaller model.", 1)
    return code if isinstance(code, int) else 0


def run() -> NoReturn:
    """The entry point of the `draftwood` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a character must not end the answer
    code = main()
    try:
        sys.stdout.flush()
    except OSError:  # said already; Python would say it again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    sentence = " ".join(message.split())
    if len(sentence) > _LONGEST_MESSAGE:
        sentence = sentence[: _LONGEST_MESSAGE - 1] + "…"
    print(f"draftwood: error: {sentence}", file=sys.stderr)
    return code
