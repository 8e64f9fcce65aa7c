"""`method="auto"`: which tree to ask for next, from measured costs and observed acceptance.

Every choice gives the same tokens, so a wrong one only costs time. A round with a tree of n candidates takes the time
of a pass of n + 1 rows (measured before the first such request) plus the drafter's own. It decides 1 + a1 + a1 a2 + ...
tokens, a_d being the share of rounds that accept depth d once depth d - 1 was accepted (observed, with a prior). The
arm with the most tokens a second is taken; plain decoding is one of the arms, so a draft that does not pay is not used.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from draftwood.decode.tree import ROOT_ONLY, TreeShape

PRIOR_WEIGHT = 4.0
"""Rounds that the prior counts for."""

PRIOR = {"chain": 0.6, "best_first": 0.7}
"""Acceptance of a depth before anything was observed."""

MEMORY = 0.97
"""What an observation still weighs a round later."""

PROBE_EVERY = 24
"""Plain rounds between two looks at whether drafting pays by now."""


@dataclass(frozen=True)
class Costs:
    """Seconds of a decode pass by rows (ascending), and of one proposal."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    propose: float = 0.0

    def verify(self, rows: int) -> float:
        """Seconds of a pass, linear between the measured row counts."""
        at = bisect_left(self.rows, rows)
        if at == len(self.rows):
            return self.seconds[-1] * rows / self.rows[-1]
        if at == 0 or self.rows[at] == rows:
            return self.seconds[at]
        low, high = self.rows[at - 1], self.rows[at]
        share = (rows - low) / (high - low)
        return self.seconds[at - 1] + share * (self.seconds[at] - self.seconds[at - 1])


@dataclass
class Acceptance:
    """Observed acceptance of each depth, given that the depth before was accepted; old rounds fade."""

    prior: float
    seen: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    rounds: float = 0.0
    proposed: float = 0.0
    nodes: float = 0.0

    def observe(self, accepted: int, proposed_depth: int, nodes: int) -> None:
        """Note a round that proposed down to `proposed_depth` with `nodes` candidates."""
        self.rounds = self.rounds * MEMORY + 1
        self.proposed = self.proposed * MEMORY + (proposed_depth > 0)
        self.nodes = self.nodes * MEMORY + nodes
        while len(self.seen) < proposed_depth:
            self.seen.append(0.0)
            self.kept.append(0.0)
        for depth in range(min(proposed_depth, accepted + 1)):
            self.seen[depth] = self.seen[depth] * MEMORY + 1
            self.kept[depth] = self.kept[depth] * MEMORY + (depth < accepted)

    def at(self, depth: int) -> float:
        """Acceptance of a depth (from 1), the prior mixed in; unseen depths take the last seen one's."""
        if not self.seen:
            return self.prior
        index = min(depth, len(self.seen)) - 1
        return (self.kept[index] + PRIOR_WEIGHT * self.prior) / (self.seen[index] + PRIOR_WEIGHT)

    @property
    def availability(self) -> float:
        """Share of rounds in which the drafter had something to propose."""
        return (self.proposed + 1) / (self.rounds + 1)

    def expected(self, depth: int) -> float:
        """Tokens a round decides with a tree that reaches `depth`."""
        total, reach = 1.0, self.availability
        for d in range(1, depth + 1):
            reach *= self.at(d)
            total += reach
        return total


@dataclass(frozen=True)
class Arm:
    """A choice: the method's name for reports, its shape, how deep it goes, and rows of its pass at most."""

    method: str
    shape: TreeShape
    depth: int

    @property
    def rows(self) -> int:
        """Rows of its verify pass."""
        return 1 + (0 if self.method == "ar" else self.shape.budget)


class AutoPolicy:
    """Chooses the next round's tree. `arms` are what the drafter can serve; the first is plain decoding."""

    def __init__(self, costs: Costs, arms: list[Arm]) -> None:
        self.costs, self.arms = costs, arms
        self.acceptance = {kind: Acceptance(prior) for kind, prior in PRIOR.items()}
        self._plain_rounds = 0
        self.last = arms[0]

    def rate(self, arm: Arm) -> float:
        """Expected tokens a second."""
        if arm.method == "ar":
            return 1 / self.costs.verify(1)
        seen = self.acceptance[arm.shape.kind]
        drafted = self.costs.verify(arm.rows) * seen.availability + self.costs.verify(1) * (1 - seen.availability)
        return seen.expected(arm.depth) / (drafted + self.costs.propose)

    def choose(self) -> Arm:
        """The arm for the next round."""
        best = max(self.arms, key=self.rate)
        if best.method == "ar" and len(self.arms) > 1:
            self._plain_rounds += 1
            if self._plain_rounds % PROBE_EVERY == 0:
                best = max(self.arms[1:], key=self.rate)
        else:
            self._plain_rounds = 0
        self.last = best
        return best

    def observe(self, arm: Arm, accepted: int, proposed_depth: int, nodes: int) -> None:
        """Learn from a round."""
        if arm.method != "ar":
            self.acceptance[arm.shape.kind].observe(accepted, proposed_depth, nodes)

    def reason(self) -> str:
        """One sentence: the arm that is best now, and why."""
        best, plain = max(self.arms, key=self.rate), self.arms[0]
        if best.method == "ar":
            other = max(self.arms[1:], key=self.rate, default=None)
            beside = (
                f"; the best draft ({other.method} {other.shape.budget}) would give {self.rate(other):.0f}"
                if other
                else ""
            )
            return f"plain decoding, {self.rate(plain):.0f} tokens/s expected{beside}"
        tokens = self.acceptance[best.shape.kind].expected(best.depth)
        return (
            f"{best.method} with budget {best.shape.budget}: "
            f"{tokens:.1f} tokens a round of {1000 * tokens / self.rate(best):.1f} ms expected, "
            f"against one in {1000 * self.costs.verify(1):.1f} ms"
        )


def arms_for(
    max_depth: int, shape_of: Callable[[str, int], TreeShape], budgets: dict[str, tuple[int, ...]]
) -> list[Arm]:
    """Plain decoding and, per method, the budgets worth a look for a drafter that reaches `max_depth`."""
    arms = [Arm("ar", ROOT_ONLY, 0)]
    for method, choices in budgets.items():
        for budget in choices:
            shape = shape_of(method, budget)
            depth = min(max_depth, budget if shape.kind == "chain" else max(1, budget // 2))
            if max_depth:
                arms.append(Arm(method, shape, depth))
    return arms
