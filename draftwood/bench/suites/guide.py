"""Which KV type and draft to take at which length of context, from measurements of what the planner lets fit.

The planner's rule chooses: bits that show in the answer are never traded for speed. Its predicted times are replaced by
measured ones, so that only the bytes are still planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from draftwood.bench.suites.ctx import Decoded, Point, Series
from draftwood.bench.suites.ctx import Row as Measured
from draftwood.errors import DraftwoodError
from draftwood.planner import hardware, plan, search
from draftwood.planner.hardware import GIB
from draftwood.planner.inventory import Draft, Target
from draftwood.planner.plan import KVPair
from draftwood.planner.search import Question

UNLEVERED = replace(plan.OURS, levers=())
"""Our sizes as buffers are allocated today, whatever might be freed."""


@dataclass(frozen=True)
class Candidate:
    """One pair at one length. planned: the planner's row. measured: None where it does not fit or was not reached."""

    draft: str
    planned: plan.Row
    measured: Measured | None = None

    @property
    def best(self) -> Decoded:
        """The faster of plain decoding and rounds with guesses."""
        if self.measured is None:
            raise ValueError(f"{self.planned.kv_short} was not measured")
        plain, drafted = self.measured.plain, self.measured.drafted
        ways = [plain] if drafted is None else [plain, drafted]
        return max(ways, key=lambda way: way.tokens_per_second)

    @property
    def guesses(self) -> bool:
        """Whether rounds with guesses are the faster ones."""
        return self.measured is not None and self.best is self.measured.drafted

    @property
    def name(self) -> str:
        """KV type and draft."""
        return f"{self.planned.kv_short} + {self.draft}"


@dataclass(frozen=True)
class Entry:
    """One length. candidates: every pair. pick: what to take; fastest: the most tokens a second; None of nothing."""

    point: Point
    candidates: tuple[Candidate, ...]
    pick: Candidate | None
    fastest: Candidate | None


@dataclass(frozen=True)
class Planned:
    """The planner's row for each length and pair of one draft."""

    draft: str
    rows: dict[tuple[Point, KVPair], plan.Row]

    def fitting(self, pair: KVPair) -> tuple[Point, ...]:
        """The lengths at which a pair fits, shortest first."""
        return tuple(point for (point, kv), row in self.rows.items() if kv == pair and row.fits)


@dataclass(frozen=True)
class Room:
    """What there is room for.

    target: the model's facts. whole, usable: bytes. budget: guesses of a round, None for any. draft_kv: types of the
    draft's own cache. n_gen: tokens of an answer.
    """

    target: Target
    whole: int
    usable: int
    budget: int | None
    draft_kv: KVPair
    n_gen: int

    def weigh(self, name: str, draft: Draft | None, pairs: Sequence[KVPair], points: Sequence[Point]) -> Planned:
        """What fits of a draft (None: one without weights) with each pair at every length."""
        card = hardware.cards()[hardware.DEFAULT_CARD]  # for its times, which nobody sees
        rows = {}
        for point in points:
            for pair in pairs:
                context = point.tokens + self.n_gen
                question = Question(
                    self.target, (draft,), card, self.whole, self.usable, context, UNLEVERED, self.budget, pair,
                    self.draft_kv,
                )  # fmt: skip
                [rows[point, pair]] = search.weigh(question)
        return Planned(name, rows)


def require_some(planned: Sequence[Planned], room: Room) -> None:
    """A DraftwoodError unless something fits."""
    rows = [row for one in planned for row in one.rows.values()]
    if not any(row.fits for row in rows):
        least = min(rows, key=lambda row: row.total)
        raise DraftwoodError(
            f"nothing fits: {least.kv_short} takes {least.total / GIB:.2f} GiB at the shortest context, and "
            f"{room.usable / GIB:.2f} of {room.whole / GIB:.2f} GiB can be used; name shorter --contexts or "
            "smaller types."
        )


def entries(planned: Sequence[Planned], series: Sequence[Series], points: Sequence[Point]) -> list[Entry]:
    """For each length what to take, of what was measured there."""
    found = {(one.draft, one.kv, row.point): row for one in series for row in one.rows}
    made = []
    for point in points:
        candidates = tuple(
            Candidate(of.draft, row, found.get((of.draft, row.kv_short, point)))
            for of in planned
            for (place, _), row in of.rows.items()
            if place == point
        )
        there = [candidate for candidate in candidates if candidate.measured is not None]
        fastest = max(there, key=lambda candidate: candidate.best.tokens_per_second, default=None)
        made.append(Entry(point, candidates, _pick(there), fastest))
    return made


def _pick(candidates: Sequence[Candidate]) -> Candidate | None:
    """By the planner's rule with measured speeds; None of nothing."""
    rows = [
        replace(candidate.planned, round=candidate.best.round.middle / 1000, tokens=candidate.best.acceptance_length)
        for candidate in candidates
    ]
    if not rows:
        return None
    best = search.pick(rows)
    return next(candidate for candidate, row in zip(candidates, rows, strict=True) if row is best)
