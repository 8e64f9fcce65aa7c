"""Lists that several benchmarks take on the command line."""

from __future__ import annotations

from draftwood.cli import options
from draftwood.errors import UsageError


def distinct(flag: str, text: str) -> list[str]:
    """The parts of a list with commas, none of them twice."""
    parts = [part.strip() for part in text.split(",")]
    if len(set(parts)) < len(parts):
        raise UsageError(f"{flag} is {text[:80]!r}, but each value can be named once.")
    return parts


def row_count(text: str) -> int:
    """A number of rows; 64 fit into a pass."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= options.MAX_BUDGET + 1:
        raise UsageError(f"--rows names {text[:40]!r}, but a pass has 1 to {options.MAX_BUDGET + 1} rows.")
    return int(text)
