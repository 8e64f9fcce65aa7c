"""Which KV type and draft to take at which length of context, from measurements of what the planner lets fit.

The planner's rule chooses: bits that show in the answer are never traded for speed. Its predicted times are replaced by
measured ones, so that only the bytes are still planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from draftwood.bench.suites.ctx import Decoded, Point, Series
from draftwood.bench.suites.ctx import Row as Measured
from draftwood.engine.config import EngineConfig
from draftwood.engine.planning import question_of
from draftwood.errors import DraftwoodError
from draftwood.planner import plan, search
from draftwood.planner.hardware import GIB
from draftwood.planner.inventory import Target
from draftwood.planner.plan import LEVERS, KVPair


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

    @property
    def levers(self) -> list[str]:
        """What is pulled so that it fits, in words."""
        return [lever.what for lever in LEVERS if lever.name in self.planned.levers]


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

    def fitting(self, pair: KVPair) -> list[tuple[Point, ...]]:
        """The lengths at which a pair fits, shortest first; apart where other levers are pulled, as one engine has its
        weights in one place."""
        found: dict[tuple[str, ...], list[Point]] = {}
        for (point, kv), row in self.rows.items():
            if kv == pair and row.fits:
                found.setdefault(row.levers, []).append(point)
        return [tuple(points) for points in found.values()]


@dataclass(frozen=True)
class Room:
    """What there is room for.

    target: the model's facts. whole, usable: bytes. config: how engines are loaded, but for draft, KV type and context.
    n_gen: tokens of an answer.
    """

    target: Target
    whole: int
    usable: int
    config: EngineConfig
    n_gen: int

    def weigh(self, draft: str, name: str, pairs: Sequence[KVPair], points: Sequence[Point]) -> Planned:
        """What fits of a draft, which is called `name`, with each pair at every length: as an engine would plan it."""
        asked = question_of(replace(self.config, draft=draft), self.target, self.whole, self.usable)
        rows = {}
        for point in points:
            for pair in pairs:
                [rows[point, pair]] = search.weigh(replace(asked, context=point.tokens + self.n_gen, kv=pair))
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
