"""`method="auto"`: which tree to ask for next, from measured costs and observed acceptance.

Every choice gives the same tokens, so a wrong one only costs time. An arm is a kind of tree and how deep it goes. Its
rounds take the time of a pass of as many rows as its trees had on average, plus the drafter's own; they decide
1 + a1 + a1 a2 + ... tokens, a_d being the share of rounds that accepted depth d of those that had accepted d - 1. The
arm with the most tokens a second is taken. Plain decoding is an arm, so a draft that does not pay is not used.

How large a single tree becomes is the draft's to say. A row of a pass is worth its time for a candidate whose chance to
be accepted is at least the time of a row over the time of a token, and the draft's probabilities tell that chance, once
they are corrected by how much of what they promised was accepted. Less likely candidates stay out (`TreeShape.floor`).

What was seen fades, so that the hopeful prior leads back to arms that were given up; the worse they did, the later.
The constants were tried on simulated drafts of every quality (docs/log.md).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import mul

from draftwood.decode.tree import ROOT_ONLY, TreeShape

PRIOR = 0.7
"""Acceptance of the first depth before anything was observed; of later ones, that of the depth before."""

PRIOR_WEIGHT = 3.0
"""Rounds that a prior counts for."""

MEMORY = 0.98
"""What an observation still weighs a round later."""

CARRIED_ROUNDS = 2.0
"""Rounds that the acceptance seen in earlier texts counts for, at most."""

LOOK_AFTER = 128
"""Rounds until the kind of tree that was not asked for the longest is tried again, whatever it promises."""

PLAIN_AFTER = 64
"""Rounds until a plain one, which the first is too, is timed again; it costs next to nothing."""

TIMES_MEMORY = 0.95
"""What a round's time still weighs a round later: machines are now busy, now idle."""

TIMES_WEIGHT = 1.0
"""Rounds that the times of the other kind of round, drafted or plain, count for."""

HIGHEST_FLOOR = 0.5
"""However dear a row is, a candidate that is rather right than wrong is tried."""

PLAIN_AT_ONCE = 8
"""Plain rounds after which everything is judged anew; after a drafted one it always is."""

MOST_SLOWNESS = 2.0
"""A single round counts for no more over (or under) the announced time than by this factor."""


@dataclass(frozen=True)
class Costs:
    """Seconds of a decode pass by rows (ascending, as are the seconds), and of a proposal by kind of tree and depth."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    propose: Mapping[tuple[str, int], float] = field(default_factory=dict)

    def verify(self, rows: float) -> float:
        """Seconds of a pass: linear between the measured row counts, and beyond them as between the last two."""
        if len(self.rows) == 1:
            return self.seconds[0]
        at = min(max(bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        low, high = self.rows[at - 1], self.rows[at]
        share = (rows - low) / (high - low)
        return self.seconds[at - 1] + share * (self.seconds[at] - self.seconds[at - 1])

    def at_most(self, rows: int, seconds: float) -> Costs:
        """These costs, where a pass of so many rows, or fewer, was seen to take no longer than that."""
        known = zip(self.rows, self.seconds, strict=True)
        return replace(self, seconds=tuple(min(s, seconds) if r <= rows else s for r, s in known))


class Seen:
    """What rounds of one kind of tree, or of all kinds, did at each depth; old rounds fade.

    _reached: rounds that asked for the depth and accepted the one before. _accepted: those that accepted it too.
    _asked: rounds that asked for the depth. _nodes: the nodes that they had there.
    """

    def __init__(self, deepest: int) -> None:
        self._reached, self._accepted, self._asked, self._nodes = ([0.0] * deepest for _ in range(4))

    def observe(self, rounds: int, depth: int, accepted: int, proposed_depth: int, nodes: int) -> None:
        """Note that so many rounds went by, the last of which asked for `depth`, 0 if it was of another kind.

        A depth that was asked for and not proposed was not accepted. Nodes are taken as evenly spread.
        """
        self._fade(MEMORY**rounds)
        for d in range(depth):
            self._asked[d] += 1
            self._nodes[d] += nodes / proposed_depth if d < proposed_depth else 0
            if d <= accepted:
                self._reached[d] += 1
                self._accepted[d] += d < accepted

    def carry(self) -> None:
        """Begin another text: what was seen in others counts for a few rounds at most."""
        self._fade(min(1.0, CARRIED_ROUNDS / max(self._asked[0], CARRIED_ROUNDS)))

    def acceptance(self, prior: list[float] | None = None) -> list[float]:
        """By depth; where little was seen it is like the prior, or without one like the depth before."""
        values: list[float] = []
        last = PRIOR
        for d, (rounds, total) in enumerate(zip(self._reached, self._accepted, strict=True)):
            last = _mean(total, rounds, prior[d] if prior else last)
            values.append(last)
        return values

    def nodes(self, prior: list[float] | None = None) -> list[float]:
        """By depth; where little was seen it is like the prior, or without one a single one."""
        pairs = zip(self._nodes, self._asked, strict=True)
        return [_mean(total, rounds, prior[d] if prior else 1.0) for d, (total, rounds) in enumerate(pairs)]

    def _fade(self, share: float) -> None:
        self._reached = [value * share for value in self._reached]
        self._accepted = [value * share for value in self._accepted]
        self._asked = [value * share for value in self._asked]
        self._nodes = [value * share for value in self._nodes]


def _mean(total: float, rounds: float, prior: float, weight: float = PRIOR_WEIGHT) -> float:
    """A mean, with a prior that counts for `weight` rounds."""
    return (total + weight * prior) / (rounds + weight)


@dataclass(frozen=True)
class Arm:
    """A choice: the method's name for reports, its shape and how deep it goes."""

    method: str
    shape: TreeShape
    depth: int


@dataclass(frozen=True)
class Outlook:
    """What a round of an arm is expected to decide, and the seconds it is expected to take."""

    tokens: float
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


class AutoPolicy:
    """Chooses the next round's tree.

    arms: what the drafter can serve, at least two; the first is plain decoding.
    """

    def __init__(self, costs: Costs, arms: list[Arm]) -> None:
        self.costs, self.arms = costs, arms
        deepest = max(arm.depth for arm in arms)
        self._all = Seen(deepest)
        self._seen = {arm.shape.kind: Seen(deepest) for arm in arms[1:]}
        # Plain rounds and drafted ones: how many, and the seconds they really took over those that the costs announce.
        self._timed, self._slowness = [0.0, 0.0], [0.0, 0.0]
        # Candidates accepted and expected, of rounds with probabilities.
        self._kept, self._promised = 0.0, 0.0
        # The round in which each kind was last asked for.
        self._round, self._judged, self._asked = 0, 0, {arm.shape.kind: 0 for arm in arms}
        self.begin()

    def begin(self) -> None:
        """Another text begins, which the draft may know better or worse than the last."""
        for seen in (self._all, *self._seen.values()):
            seen.carry()
        self._judge()

    def choose(self) -> Arm:
        """The arm for the next round, its shape with the floor that is worth it now."""
        self._round += 1
        arm = self.best
        if self._round % LOOK_AFTER == 0:
            longest_ago = min(self._asked, key=self._asked.__getitem__)
            arm = max((arm for arm in self.arms if arm.shape.kind == longest_ago), key=self.rate)
        elif self._round % PLAIN_AFTER == 1:
            arm = self.arms[0]
        self._asked[arm.shape.kind] = self._round
        return replace(arm, shape=replace(arm.shape, floor=self.floor)) if arm.depth else arm

    def observe(
        self, arm: Arm, accepted: int, proposed_depth: int, nodes: int, expected: float, seconds: float
    ) -> None:
        """Learn from a round: what it did, see `RoundOutcome`, and how long it took."""
        if seconds < self.costs.verify(1 + nodes):  # another program ran while it was measured
            self.costs = self.costs.at_most(1 + nodes, seconds)
        drafted, slowness = arm.depth > 0, seconds / self._announced(arm, 1 + nodes)
        for sums in (self._timed, self._slowness):
            sums[:] = [value * TIMES_MEMORY for value in sums]
        self._timed[drafted] += 1
        self._slowness[drafted] += min(MOST_SLOWNESS, max(1 / MOST_SLOWNESS, slowness))
        rounds = self._round - self._judged
        if not drafted and rounds < PLAIN_AT_ONCE:
            return
        self._judged = self._round
        self._all.observe(rounds, arm.depth, accepted, proposed_depth, nodes)
        for kind, seen in self._seen.items():
            seen.observe(rounds, arm.depth if kind == arm.shape.kind else 0, accepted, proposed_depth, nodes)
        if drafted:
            self._promised = self._promised * MEMORY + expected
            self._kept = self._kept * MEMORY + (accepted if expected else 0)
        self._judge()

    def rate(self, arm: Arm) -> float:
        """Expected tokens a second."""
        return self.outlook[arm].rate

    def reason(self) -> str:
        """One sentence: the arm that is best now, and why."""
        best, plain = self.outlook[self.best], self.outlook[self.arms[0]]
        if not self.best.depth:
            other = max(self.arms[1:], key=self.rate)
            return (
                f"plain decoding, {plain.rate:.0f} tokens/s expected; {_named(other)} would give {self.rate(other):.0f}"
            )
        kept = f" of guesses likelier than {100 * self.floor:.0f} %" if self._promised else ""
        return (
            f"{_named(self.best)}{kept}: {best.tokens:.1f} tokens a round of {1000 * best.seconds:.1f} ms expected, "
            f"against one in {1000 * plain.seconds:.1f} ms"
        )

    def _judge(self) -> None:
        """Work out the outlook of every arm, the best one, and the floor."""
        acceptance, nodes = self._all.acceptance(), self._all.nodes()
        known = {kind: (seen.acceptance(acceptance), seen.nodes(nodes)) for kind, seen in self._seen.items()}
        # What is true of one kind of round is taken to be true of the other until it was timed.
        both = _mean(sum(self._slowness), sum(self._timed), 1.0)
        plain, drafted = (_mean(*sums, both, TIMES_WEIGHT) for sums in zip(self._slowness, self._timed, strict=True))
        self.outlook = {self.arms[0]: Outlook(1.0, self._announced(self.arms[0], 1) * plain)}
        for arm in self.arms[1:]:
            acceptance, nodes = known[arm.shape.kind]
            tokens = 1 + sum(accumulate(acceptance[: arm.depth], mul))
            seconds = self._announced(arm, 1 + sum(nodes[: arm.depth]))
            self.outlook[arm] = Outlook(tokens, seconds * drafted)
        self.best = max(self.arms, key=self.rate)
        wide = max(self.costs.rows)
        row = (self.costs.verify(wide) - self.costs.verify(1)) / max(1, wide - 1) * drafted
        honesty = _mean(self._kept, self._promised, 1.0)
        self.floor = min(HIGHEST_FLOOR, max(0.0, row * self.rate(self.best) / honesty))

    def _announced(self, arm: Arm, rows: float) -> float:
        """Seconds of a round by the costs."""
        return self.costs.verify(rows) + self.costs.propose.get((arm.shape.kind, arm.depth), 0.0)


def _named(arm: Arm) -> str:
    return f"{arm.method} to depth {arm.depth}"


def arms_for(
    max_depth: int, shape_of: Callable[[str, int], TreeShape], depths: Mapping[str, Mapping[int, int]]
) -> list[Arm]:
    """Plain decoding and, per method, what is worth a look for a drafter that reaches `max_depth`: depth -> budget.

    The nodes of a tree are left to the floor, so its chain gets no share of its own.
    """
    arms = [Arm("ar", ROOT_ONLY, 0)]
    for method, choices in depths.items():
        for depth, budget in {min(depth, max_depth): budget for depth, budget in choices.items()}.items():
            if depth:
                shape = replace(shape_of(method, budget), depth=depth, chain_seed="none")
                arms.append(Arm(method, shape, depth))
    return arms
