"""Choosing among the forms of an operation: the first that can run, decided once at load."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from draftwood.errors import DeviceError

Request = TypeVar("Request", contravariant=True)


class Candidate(Protocol[Request]):
    """Anything with a name and a `can_run` that says why not, or None."""

    @property
    def name(self) -> str:
        """Short name for reports."""

    @property
    def can_run(self) -> Callable[[Request], str | None]:
        """The reason it cannot serve a request, or None."""


Chosen = TypeVar("Chosen", bound=Candidate)  # type: ignore[type-arg]


def select(what: str, candidates: Iterable[Chosen], request: object) -> Chosen:
    """The first candidate that can serve `request`; a DeviceError lists every reason when none can."""
    reasons = []
    for candidate in candidates:
        reason = candidate.can_run(request)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.name}: {reason}")
    raise DeviceError(f"no form of {what} can run {request}: {'; '.join(reasons)}.")
