"""A limit by the clock for measurements that show what they have when it is over. Torch-free."""

from __future__ import annotations

import re
import time

from draftwood.errors import UsageError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_LONGEST = 48 * 3600


class OutOfTime(Exception):
    """The limit has passed; what was measured until then counts."""


class Clock:
    """Runs from when it is made. seconds: how long, None without an end."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds, self._begun = seconds, time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._begun

    def check(self) -> None:
        """Raise OutOfTime once the limit has passed."""
        if self.seconds is not None and self.elapsed > self.seconds:
            raise OutOfTime


def parse_limit(text: str) -> float:
    """ "8m", "90s", "1.5h" or "480" (seconds) -> seconds; a UsageError for anything else."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s*([smh]?)", text.strip().lower())
    seconds = 0.0 if found is None else float(found[1]) * _UNITS[found[2]]
    if not 0 < seconds <= _LONGEST:
        raise UsageError(f"--limit is {text[:40]!r}, but must be a time of up to 48 hours, as in 90s, 8m or 1h.")
    return seconds


def duration(seconds: float) -> str:
    """As in "45 s", "7 min 5 s" and "2 h 10 min"; "1 s" for less."""
    whole = max(round(seconds), 1)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
