"""Where the command line writes: answers and tables to stdout, everything about them to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

_PIPE_WIDTH = 120
_BAR_WIDTH = 70
_PATIENCE = 2.0


def output() -> Console:
    """The console on stdout; wide enough for a table when it is no terminal."""
    return _console(stderr=False)


def notes() -> Console:
    """The console on stderr."""
    return _console(stderr=True)


def note(line: str) -> None:
    """One plain line on stderr."""
    print(line, file=sys.stderr, flush=True)


def plain(lines: Iterable[str]) -> None:
    """Plain lines on stdout."""
    for line in lines:
        print(line)
    sys.stdout.flush()


@contextmanager
def waiting(label: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr while something of unknown length runs; yields a function that changes the label."""
    with notes().status(label) as status:
        yield status.update


@contextmanager
def steps(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr for `total` steps; yields a function that is called with a label as each one begins."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = notes()
    columns: list[ProgressColumn] = [MofNCompleteColumn(), TextColumn("{task.description}")]
    if console.width >= _BAR_WIDTH:
        columns = [BarColumn(), columns[0], TimeElapsedColumn(), columns[1]]
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task("", total=total)
        begun = -1

        def begin(label: str) -> None:
            nonlocal begun
            begun += 1
            bar.update(task, completed=begun, description=label)

        yield begin


@contextmanager
def reading(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr for a prompt of `total` tokens that is not read within two seconds.

    Yields a function that is told the tokens read so far; the bar goes away with the last one.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console, begun = notes(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
    task = bar.add_task("reading the prompt", total=total)

    def advance(done: int) -> None:
        bar.update(task, completed=done)
        if done >= total:
            bar.stop()
        elif time.monotonic() - begun > _PATIENCE:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    return console
