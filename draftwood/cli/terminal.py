"""Where the command line writes: answers and tables to stdout, everything about them to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console

_PIPE_WIDTH = 120


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
def waiting(label: str) -> Iterator[None]:
    """A spinner on stderr while something of unknown length runs."""
    with notes().status(label):
        yield


@contextmanager
def steps(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr for `total` steps; yields a function that is called with a label as each one begins."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=notes(), transient=True) as bar:
        task = bar.add_task("", total=total)
        begun = -1

        def begin(label: str) -> None:
            nonlocal begun
            begun += 1
            bar.update(task, completed=begun, description=label)

        yield begin


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    return console
