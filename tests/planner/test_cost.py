"""The formulas of the time model, and the budgets that follow from them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from draftwood.cache.registry import kv_pair
from draftwood.planner import acceptance, hardware, inventory
from draftwood.planner.cost import CostModel

TARGET = inventory.known_target("qwen3.6-27b")
DRAFT = inventory.named_draft("q8_0", TARGET)


def model(card: str, kv: str = "q8_0", draft: inventory.Draft | None = DRAFT) -> CostModel:
    return CostModel(hardware.cards()[card], TARGET, draft, kv_pair(kv), kv_pair("q8_0"))


def test_weights_take_the_longer_of_bytes_and_operations() -> None:
    made = model("RTX 3090")
    for rows, tiles in ((1, 16), (16, 16), (17, 32), (33, 48), (64, 64)):
        operations = 2 * weights() * tiles / 71e12
        reading = sum(info.nbytes for info in TARGET.matrices) / 936e9
        assert made.step_parts(rows, 0)["weights"] == pytest.approx(max(operations, reading))
    assert made.step_parts(16, 0)["weights"] < made.step_parts(17, 0)["weights"]


def weights() -> int:
    return sum(info.shape[0] * info.shape[1] for info in TARGET.matrices)


def test_the_matrices_are_the_models() -> None:
    vectors = sum(info.shape[0] for info in TARGET.tensors if len(info.shape) == 1)
    assert weights() + vectors + 248_320 * 5120 == 26_895_998_464


def test_attention_is_393216_operations_a_row_and_token() -> None:
    made = model("RTX 3090")
    for rows, context in ((16, 4096), (23, 131072)):
        assert made.step_parts(rows, context)["attention"] == pytest.approx(393_216 * rows * context / 71e12)
    assert made.step_parts(1, 131072)["attention"] == pytest.approx(34_816 * 131072 / 936e9)


def test_fewer_bits_are_faster_where_bytes_decide() -> None:
    long, short = model("RTX 3090", "f16"), model("RTX 3090", "q8_0")
    assert short.step(1, 131072) < long.step(1, 131072)
    assert short.step(32, 131072) == long.step(32, 131072)


@pytest.mark.parametrize("card", list(hardware.cards()))
def test_the_best_budget_is_the_fastest_and_falls_with_the_context(card: str) -> None:
    made = model(card)
    budgets = [made.best_budget(context) for context in (0, 4096, 16384, 65536, 131072, 196608, 262144)]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[0] > budgets[-1] > 0
    for context in (4096, 262144):
        best = made.best_budget(context)
        assert all(made.speed(best, context) >= made.speed(budget, context) for budget in range(64))
    assert made.best_budget(4096, most=8) <= 8


def test_budgets_on_a_3090() -> None:
    made = model("RTX 3090")
    assert [made.best_budget(k * 1024) for k in (4, 16, 64, 128, 192, 256)] == [15, 15, 15, 10, 9, 7]


def test_a_draft_that_cannot_pay_is_not_used() -> None:
    slow = hardware.Card("slow", hardware.GIB, 1e15, 1e9)
    assert CostModel(slow, TARGET, DRAFT, kv_pair("q8_0"), kv_pair("q8_0")).best_budget(1 << 24) == 0
    assert model("RTX 3090", draft=None).best_budget(4096) == 0


def test_a_round_is_a_step_and_a_block() -> None:
    made = model("RTX 4090")
    drafting = sum(made.draft_parts(65536).values())
    assert made.round(15, 65536) == pytest.approx(made.step(16, 65536) + drafting)
    assert made.round(0, 65536) == made.step(1, 65536)
    assert made.draft_parts(65536)["draft"] == pytest.approx(1.838e9 / 1008e9, rel=1e-3)
    assert made.draft_parts(65536)["draft head"] == pytest.approx(248_320 * 5120 * 6.5625 / 8 / 1008e9)


def test_sliding_layers_of_a_draft_read_their_window() -> None:
    made = model("RTX 3090")
    grown = made.draft_parts(262144)["draft attention"] - made.draft_parts(131072)["draft attention"]
    assert grown == pytest.approx(131072 * 4 * 32 * 128 * 16 / 71e12)


def test_the_acceptance_model_meets_its_anchors() -> None:
    assert acceptance.tokens(0) == 1
    assert acceptance.tokens(22) == pytest.approx(5.94, abs=0.01)
    assert acceptance.tokens(36) / acceptance.tokens(22) == pytest.approx(1.097, abs=0.002)
    assert acceptance.tokens(8) == pytest.approx(4.93, rel=0.06)
    assert acceptance.tokens(22, coarse=True) - 1 == pytest.approx((acceptance.tokens(22) - 1) * 28 / 43)


def test_every_candidate_adds_less_than_the_one_before() -> None:
    gains = [acceptance.tokens(b + 1) - acceptance.tokens(b) for b in range(63)]
    assert all(0 < after <= before for before, after in pairwise(gains))
