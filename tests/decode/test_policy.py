"""The choices of `auto`, from costs and observations that are made up here."""

from __future__ import annotations

import pytest

from draftwood.decode.policy import PROBE_EVERY, AutoPolicy, Costs, arms_for
from draftwood.decode.tree import TreeShape

FLAT = Costs((1, 2, 4, 8, 16, 32), (10.0, 10.1, 10.2, 10.4, 10.8, 12.0))
STEEP = Costs((1, 2, 4, 8, 16, 32), (10.0, 20.0, 40.0, 80.0, 160.0, 320.0))
BUDGETS = {"chain": (1, 3, 7, 15), "tree": (7, 22)}


def policy(costs: Costs, depth: int = 15) -> AutoPolicy:
    kinds = {"chain": "chain", "tree": "best_first"}
    return AutoPolicy(costs, arms_for(depth, lambda method, budget: TreeShape(kinds[method], budget), BUDGETS))


def play(made: AutoPolicy, accepted: int, rounds: int = 60) -> list[str]:
    """Rounds in which the first `accepted` depths are always right and the next is wrong."""
    chosen = []
    for _ in range(rounds):
        arm = made.choose()
        chosen.append(f"{arm.method}{arm.shape.budget}" if arm.method != "ar" else "ar")
        reached = min(accepted, arm.depth)
        made.observe(arm, reached, arm.depth, arm.rows - 1)
    return chosen


def test_costs_between_the_measured_rows() -> None:
    assert FLAT.verify(1) == 10.0
    assert STEEP.verify(3) == pytest.approx(30.0)
    assert STEEP.verify(64) == pytest.approx(640.0)


def test_where_rows_are_free_it_drafts_and_where_they_are_not_it_does_not() -> None:
    assert play(policy(FLAT), accepted=9)[-1] != "ar"
    assert play(policy(STEEP), accepted=1).count("ar") > 40


def test_useless_drafts_end_in_plain_decoding_with_a_look_now_and_then() -> None:
    chosen = play(policy(Costs((1, 32), (10.0, 25.0), propose=2.0)), accepted=0, rounds=200)
    assert chosen[60:].count("ar") >= len(chosen[60:]) * (1 - 1.5 / PROBE_EVERY)
    assert any(choice != "ar" for choice in chosen[60:])


def test_budgets_follow_what_is_accepted() -> None:
    middling = Costs((1, 2, 4, 8, 16, 32), (10.0, 11.0, 13.0, 18.0, 30.0, 60.0))
    short, long = policy(middling), policy(middling)
    play(short, accepted=1)
    play(long, accepted=15)
    assert max(short.arms, key=short.rate).rows < max(long.arms, key=long.rate).rows


def test_the_reason_is_one_line_of_numbers() -> None:
    made = policy(FLAT)
    play(made, accepted=9)
    assert "tokens a round" in made.reason()
    assert "\n" not in made.reason()
    plain = policy(STEEP)
    play(plain, accepted=0)
    assert "plain decoding" in plain.reason()


def test_a_drafter_without_depth_leaves_plain_decoding() -> None:
    assert [arm.method for arm in policy(FLAT, depth=0).arms] == ["ar"]
