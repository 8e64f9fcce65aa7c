"""The choices of `auto`, on drafts and machines that are made up here: time is what the costs say, not what passes."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from draftwood.decode.policy import HIGHEST_FLOOR, LOOK_AFTER, Arm, AutoPolicy, Costs, arms_for
from draftwood.decode.tree import TreeShape

DEPTHS = {"chain": {1: 1, 3: 3, 7: 7, 15: 15}, "tree": {3: 7, 7: 15, 15: 31}}
PROPOSE = {(kind, depth): 1.5 + 0.25 * depth for kind in ("chain", "best_first") for depth in (1, 3, 7, 15)}
FLAT = Costs((1, 2, 4, 8, 16), (10.0, 10.1, 10.2, 10.4, 10.8), PROPOSE)
CPU = Costs((1, 2, 4, 8, 16), (7.1, 8.5, 11.1, 18.3, 32.0), PROPOSE)
STEEP = Costs((1, 16), (10.0, 160.0), PROPOSE)
TOKENS = 128


def arms(depth: int = 15) -> list[Arm]:
    kinds = {"chain": "chain", "tree": "best_first"}
    return arms_for(depth, lambda method, budget: TreeShape(kinds[method], budget), DEPTHS)


@dataclass
class World:
    """A draft that says at each depth how sure it is of its first candidate, and is right `honesty` times as often.

    sure: between what. second: whether a tree's second candidate is right whenever the first is not, for as likely.
    late: factor of the announced time.
    """

    sure: tuple[float, float]
    honesty: float = 1.0
    second: bool = False
    late: float = 1.0
    seed: int = 0
    costs: Costs = field(default_factory=lambda: CPU)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    def round(self, arm: Arm) -> tuple[int, int, int, float, float]:
        """accepted, proposed depth, nodes, expected, seconds: as the policy observes them."""
        accepted = proposed = nodes = 0
        expected, path, on_path = 0.0, 1.0, True
        for _ in range(arm.depth):
            sure = self.draw.uniform(*self.sure)
            path *= sure
            if path < arm.shape.floor:
                break
            proposed, nodes, expected = proposed + 1, nodes + 1, expected + path
            right = self.draw.random() < sure * self.honesty
            if not right and self.second and arm.shape.branching:
                right, nodes = True, nodes + 1
            on_path = on_path and right
            accepted += on_path
        late = self.late if arm.depth else 1.0
        seconds = self.costs.verify(1 + nodes) + self.costs.propose.get((arm.shape.kind, arm.depth), 0.0)
        return accepted, proposed, nodes, expected, late * seconds

    def fixed(self, arm: Arm) -> float:
        """Seconds a token if every round is this arm's, without a floor."""
        rounds = [self.round(arm) for _ in range(400)]
        return sum(seen[-1] for seen in rounds) / sum(seen[0] + 1 for seen in rounds)


def play(policy: AutoPolicy, world: World, tokens: int = TOKENS) -> tuple[float, Counter[str]]:
    """A text: seconds a token, and how often each arm was chosen."""
    policy.begin()
    seconds, done, chosen = 0.0, 0, Counter[str]()
    while done < tokens:
        arm = policy.choose()
        chosen[f"{arm.method} {arm.depth}"] += 1
        seen = world.round(arm)
        policy.observe(arm, *seen)
        seconds, done = seconds + seen[-1], done + seen[0] + 1
    return seconds / done, chosen


def plain(world: World) -> float:
    return world.costs.verify(1)


def best_fixed(world: World) -> float:
    return min(world.fixed(arm) for arm in arms())


def test_costs_between_and_beyond_the_measured_rows() -> None:
    assert FLAT.verify(1) == 10.0
    assert STEEP.verify(3) == pytest.approx(30.0)
    assert STEEP.verify(64) == pytest.approx(640.0)
    assert FLAT.verify(32) == pytest.approx(11.6)
    assert Costs((1,), (3.0,)).verify(8) == 3.0


NEVER = World((0.01, 0.1))
OVERCONFIDENT = World((0.6, 1.0), honesty=0.02)
MEDIOCRE = World((0.05, 0.95))
GOOD = World((0.5, 1.0))
ALWAYS = World((1.0, 1.0))


@pytest.mark.parametrize("world", [NEVER, OVERCONFIDENT], ids=["never sure", "sure and wrong"])
@pytest.mark.parametrize("costs", [CPU, STEEP], ids=["cpu", "steep"])
def test_a_useless_draft_costs_less_than_a_twentieth(world: World, costs: Costs) -> None:
    for seed in range(10):
        made = AutoPolicy(costs, arms())
        tried = World(world.sure, world.honesty, seed=seed, costs=costs)
        for _ in range(3):
            seconds, chosen = play(made, tried)
            assert seconds < plain(tried) / 0.95
        assert 0 < sum(chosen.values()) - chosen["ar 0"] < 20  # and it does not give up looking


@pytest.mark.parametrize(("world", "share"), [(MEDIOCRE, 1.08), (GOOD, 1.08), (ALWAYS, 1.08)])
@pytest.mark.parametrize("costs", [CPU, FLAT], ids=["cpu", "flat"])
def test_a_useful_draft_gives_nearly_what_the_best_fixed_choice_gives(world: World, share: float, costs: Costs) -> None:
    seconds = []
    for seed in range(20):
        tried = World(world.sure, world.honesty, seed=seed, costs=costs)
        made = AutoPolicy(costs, arms())
        assert play(made, tried, 1)[1] == {"ar 0": 1}  # the first round of all is plain
        seconds.append(play(made, tried)[0])
        assert seconds[-1] < plain(tried) / 0.95
    assert sum(seconds) / len(seconds) < share * best_fixed(World(world.sure, world.honesty, costs=costs))


def test_one_that_is_always_right_is_asked_for_all_it_has() -> None:
    made = AutoPolicy(CPU, arms())
    play(made, ALWAYS)
    assert made.best.depth == 15


def test_a_draft_that_stops_being_right_and_one_that_starts() -> None:
    good_seconds = []
    for seed in range(10):
        made = AutoPolicy(CPU, arms())
        play(made, World(GOOD.sure, seed=seed))
        wrong = World(GOOD.sure, honesty=0.02, seed=seed)
        assert play(made, wrong)[0] < plain(wrong) / 0.95
        made = AutoPolicy(CPU, arms())
        play(made, World(NEVER.sure, seed=seed))
        good = World((0.8, 1.0), seed=seed)
        assert play(made, good)[0] < plain(good)
        good_seconds.append(play(made, good)[0])
    assert sum(good_seconds) / 10 < 1.08 * best_fixed(World((0.8, 1.0)))


def test_a_tree_is_used_where_second_candidates_are_worth_their_rows() -> None:
    world = World((0.3, 0.6), second=True, costs=FLAT)
    made = AutoPolicy(FLAT, arms())
    play(made, world, 4 * LOOK_AFTER)
    assert made.best.method == "tree"
    made = AutoPolicy(CPU, arms())
    play(made, World((0.9, 1.0), costs=CPU), 4 * LOOK_AFTER)
    assert made.best.method == "chain"


def test_a_draft_that_promises_more_than_it_keeps_has_to_promise_more() -> None:
    floors = []
    for honesty in (1.0, 0.7):
        made = AutoPolicy(CPU, arms())
        play(made, World((0.7, 1.0), honesty), 400)
        assert made.best.depth
        floors.append(made.floor)
    assert 0.05 < floors[0] < floors[1] <= HIGHEST_FLOOR
    free = AutoPolicy(FLAT, arms())
    play(free, World((0.7, 1.0), costs=FLAT))
    assert free.floor < 0.03


def test_without_probabilities_nothing_is_held_back() -> None:
    made = AutoPolicy(CPU, arms())
    for _ in range(40):
        arm = made.choose()
        made.observe(arm, min(2, arm.depth), arm.depth, arm.depth, 0.0, CPU.verify(1 + arm.depth))
    assert made.best.depth and "likelier" not in made.reason()


def test_rounds_that_take_longer_than_announced_are_given_up() -> None:
    """As on a long context, which makes every row of a pass dearer."""
    made = AutoPolicy(CPU, arms())
    punctual, late = World((0.6, 0.8), seed=1), World((0.6, 0.8), late=1.6, seed=1)
    play(made, punctual)
    assert made.best.depth
    play(made, late, 300)
    assert not made.best.depth
    assert play(made, late)[0] < plain(late) / 0.95


def test_costs_that_were_measured_on_a_busy_machine_are_mended() -> None:
    assert CPU.at_most(4, 9.0).seconds == (7.1, 8.5, 9.0, 18.3, 32.0)
    busy = Costs(CPU.rows, (18.0, 18.0, 18.0, 18.3, 32.0), PROPOSE)  # as if seven guesses were free
    for world in (NEVER, World((0.5, 0.9))):
        for seed in range(10):
            made, tried = AutoPolicy(busy, arms()), World(world.sure, seed=seed)
            seconds, _ = play(made, tried)
            assert seconds < plain(tried) / 0.95
            assert made.costs.verify(1) == CPU.verify(1)


def test_a_machine_that_stumbles_is_soon_forgotten() -> None:
    for seed in range(10):
        made, world = AutoPolicy(CPU, arms()), World((0.7, 1.0), seed=seed)
        play(made, world)
        for _ in range(4):
            arm = made.choose()
            accepted, proposed, nodes, expected, seconds = world.round(arm)
            made.observe(arm, accepted, proposed, nodes, expected, 20 * seconds)
        seconds, chosen = play(made, world)
        assert chosen["ar 0"] < 15
        assert seconds < 0.85 * plain(world)


def test_the_reason_is_one_line_of_numbers() -> None:
    made = AutoPolicy(CPU, arms())
    play(made, GOOD)
    assert "chain to depth" in made.reason() or "tree to depth" in made.reason()
    assert "tokens a round" in made.reason() and "likelier than" in made.reason()
    made = AutoPolicy(CPU, arms())
    play(made, NEVER)
    assert made.reason().startswith("plain decoding, ") and "would give" in made.reason()
    assert "\n" not in made.reason()


def test_arms_are_what_the_drafter_can_serve() -> None:
    assert [(arm.method, arm.depth) for arm in arms(0)] == [("ar", 0)]
    assert [(arm.method, arm.depth) for arm in arms(5)] == [
        *[("ar", 0), ("chain", 1), ("chain", 3), ("chain", 5)],
        *[("tree", 3), ("tree", 5)],
    ]
    for arm in arms()[1:]:
        assert arm.shape.deepest == arm.depth and arm.shape.budget == DEPTHS[arm.method][arm.depth]
