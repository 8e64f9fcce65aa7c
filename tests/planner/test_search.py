"""What fits 24 GiB and what is picked: the reference system's table, ours, and how a choice is made."""

from __future__ import annotations

import dataclasses

import pytest

from draftwood.cache.registry import kv_pair
from draftwood.errors import DeviceError, UsageError
from draftwood.planner import inventory
from draftwood.planner.search import answer, pick
from tests.planner.cases import GIB, K, name, planned, question

EVERYTHING = {f"{kv} + {draft}" for kv in ("q8_0", "q4_0", "tq3_0") for draft in ("q8_0", "q4_k_m")}

REFERENCE = {
    4: ("q8_0 + q8_0", EVERYTHING),
    16: ("q8_0 + q8_0", EVERYTHING),
    64: ("q8_0 + q8_0", EVERYTHING),
    128: ("q4_0 + q8_0", EVERYTHING - {"q8_0 + q8_0"}),
    192: ("q4_0 + q8_0", EVERYTHING - {"q8_0 + q8_0", "q8_0 + q4_k_m"}),
    256: ("tq3_0 + q8_0", {"q4_0 + q4_k_m", "tq3_0 + q8_0", "tq3_0 + q4_k_m"}),
}
"""Thousands of tokens -> the pick and all that fits, with the reference system's sizes."""

OURS = {
    4: ("q8_0 + q8_0", ()),
    16: ("q8_0 + q8_0", ()),
    64: ("q8_0 + q8_0", ("host_table",)),
    128: ("q5_1 + q8_0", ("host_table", "compact_weights")),
    192: ("q4_1 + q8_0", ("host_table", "compact_weights")),
    256: ("tq3_0 + q8_0", ("host_table", "compact_weights")),
}
"""Thousands of tokens -> the pick and the levers it pulls, with our sizes."""


@pytest.mark.parametrize("context", REFERENCE)
def test_the_reference_systems_table(context: int) -> None:
    made = planned(context * K, "reference")
    best, fitting = REFERENCE[context]
    assert name(made.pick) == best
    assert {name(row) for row in made.rows if row.fits} == fitting
    assert {name(row) for row in made.rows} == EVERYTHING
    assert not made.pick.levers


@pytest.mark.parametrize("context", OURS)
def test_our_table(context: int) -> None:
    made = planned(context * K)
    assert (name(made.pick), made.pick.levers) == OURS[context]


def test_the_reference_systems_bytes_a_token() -> None:
    made, longer = planned(64 * K, "reference"), planned(128 * K, "reference")
    grown = {
        name(row): (after.parts["kv"] - row.parts["kv"]) / (64 * K)
        for row, after in zip(made.rows, longer.rows, strict=True)
        if row.draft_name == "q8_0"
    }
    assert grown == {"q8_0 + q8_0": 34816, "q4_0 + q8_0": 18432, "tq3_0 + q8_0": 14336}
    assert made.pick.parts["node_states"] == 23 * 48 * 48 * 128 * 128 * 2
    assert "table" not in made.pick.parts


def test_three_bits_at_256k_leave_room_on_a_real_card() -> None:
    """By the driver's count a 24 GiB card gives no more than 23.25 GiB."""
    rows = {name(row): row for row in planned(256 * K).rows}
    row = rows["tq3_0 + q8_0"]
    assert row.fits and row.total <= 23.25 * GIB
    assert row.parts["weights"] < 15 * GIB and row.parts["kv"] > 3.06 * GIB


def test_the_lever_bytes_are_what_the_parts_lose() -> None:
    roomy, tight = planned(4 * K).pick, planned(128 * K)
    freed = tight.lever_bytes
    assert freed["host_table"] == roomy.parts["table"]
    assert 0.66 * GIB < freed["host_table"] < 0.67 * GIB
    assert freed["compact_weights"] == roomy.parts["weights"] - tight.pick.parts["weights"]
    assert 0 < freed["draft_kv"] < tight.pick.parts["draft_kv"]


def test_no_lever_is_pulled_before_it_is_needed() -> None:
    asked = question(64 * K)
    roomy = {name(row): row for row in answer(dataclasses.replace(asked, limit=100 * GIB)).rows}["q8_0 + q8_0"]
    for spare, levers in (
        (0, ()),
        (-1, ("host_table",)),
        (-roomy.parts["table"] - 1, ("host_table", "compact_weights")),
    ):
        made = answer(dataclasses.replace(asked, limit=roomy.total + spare))
        assert {name(row): row for row in made.rows}["q8_0 + q8_0"].levers == levers


@pytest.mark.parametrize("sizes", ["ours", "reference"])
def test_the_longest_context_is_the_longest(sizes: str) -> None:
    asked = question(64 * K, sizes)
    for row in answer(asked).rows:
        again = {name(r): r for r in answer(dataclasses.replace(asked, context=row.longest)).rows}[name(row)]
        assert again.fits
        with pytest.raises(DeviceError):
            answer(dataclasses.replace(asked, context=row.longest + 257, kv=row.kv, drafts=(row.draft,)))


def test_bits_are_not_traded_for_speed() -> None:
    rows = {row.kv_short: row for row in planned(64 * K).rows if row.draft_name == "q8_0"}
    slow = dataclasses.replace(rows["q8_0"], round=10 * rows["q8_0"].round)
    assert pick([slow, rows["q4_0"], rows["tq2_0"]]).kv_short == "q8_0"


def test_two_bits_are_taken_only_where_nothing_else_fits() -> None:
    rows = {name(row): row for row in planned(64 * K).rows}
    assert name(pick([rows["tq2_0 + q8_0"], rows["tq3_0 + q4_k_m"]])) == "tq3_0 + q4_k_m"
    assert name(pick([rows["tq2_0 + q8_0"], rows["tq2_0 + q4_k_m"]])) == "tq2_0 + q8_0"


def test_the_draft_is_picked_for_its_speed() -> None:
    rows = {name(row): row for row in planned(64 * K).rows}
    assert name(pick([rows["q4_0 + q8_0"], rows["q8_0 + q4_k_m"]])) == "q4_0 + q8_0"


def test_more_bits_than_show_are_not_taken() -> None:
    made = planned(4 * K)
    assert {"f16", "f32", "q8_0"} <= {row.kv_short for row in made.rows if row.fits}
    assert made.pick.kv_short == "q8_0"


def test_why_names_what_stands_in_the_way() -> None:
    said = planned(256 * K).why
    assert "tq3_0" in said and "tq4_0 takes 23.38 GiB" in said and "q4_k_m" in said
    assert "as well as f16" in planned(4 * K).why
    assert "q5_0 takes 23.33 GiB" in planned(192 * K).why
    assert "best of the types" in planned(4 * K, kv=kv_pair("tq3_0")).why


@pytest.mark.parametrize(
    ("context", "sizes", "fragment"),
    [
        (16, "reference", "guide: tq3_0 + q4_k_m for documents; q8_0 + q8_0 fits too"),
        (64, "reference", "tq3_0 would take 1.25 GiB less"),
        (128, "reference", "guide: q4_0 + q4_k_m or tq3_0 + q8_0 for code bases"),
        (192, "reference", "says that q4_0 + q8_0 does not fit 192K, but its own sweep ran it"),
        (192, "ours", "says that q4_0 + q8_0 does not fit 192K"),
        (512, "ours", "made for 262,144 tokens"),
        (512, "ours", "6.5 % more perplexity"),
    ],
)
def test_remarks(context: int, sizes: str, fragment: str) -> None:
    assert any(fragment in remark for remark in planned(context * K, sizes).remarks)


def test_the_guide_is_for_its_card_and_its_model() -> None:
    assert not any("guide" in remark for remark in planned(4 * K).remarks)
    assert not any("guide" in remark for remark in planned(16 * K, card="H200", memory=140 * GIB).remarks)


def test_the_draft_with_better_guesses_is_preferred() -> None:
    made = planned(128 * K)
    by_draft = {row.draft_name: row for row in made.rows if row.kv == made.pick.kv}
    assert by_draft["q8_0"].speed > 1.1 * by_draft["q4_k_m"].speed
    assert by_draft["q8_0"].parts["draft"] > by_draft["q4_k_m"].parts["draft"]


def test_a_context_that_cannot_fit_names_the_longest_that_does() -> None:
    with pytest.raises(
        DeviceError, match=r"1,048,576 tokens does not fit .* the longest .* is \d{3},\d{3}, with"
    ) as caught:
        planned(1024 * K)
    longest = int(str(caught.value).split(" does is ")[1].split(", with")[0].replace(",", ""))
    assert planned(longest).pick.fits
    with pytest.raises(DeviceError, match="longest"):
        planned(longest + 65)


def test_a_card_that_is_too_small_for_any_context() -> None:
    with pytest.raises(
        DeviceError, match=r"does not fit into 7.75 usable of 8.00 GiB: without any context it takes 1\d"
    ):
        planned(4 * K, memory=8 * GIB)


def test_a_given_budget_is_kept() -> None:
    made = planned(64 * K, budget=22)
    assert {row.budget for row in made.rows} == {22}
    # Tapes are made for the largest pass, whatever the budget.
    assert made.pick.parts["tape"] == 48 * (67 * 10240 * 2 + 64 * 2 * 48 * 4)
    assert made.pick.parts["workspace"] < planned(64 * K).pick.parts["workspace"]


def test_given_types_are_the_only_ones() -> None:
    made = planned(64 * K, kv=kv_pair("q8_0/q4_0"), draft_kv=kv_pair("f16"))
    assert {row.kv_name for row in made.rows} == {"q8_0/q4_0"}
    assert "draft_kv" not in made.lever_bytes
    with pytest.raises(UsageError, match="multiple of"):
        answer(dataclasses.replace(question(64, kv=kv_pair("q8_0")), target=narrow()))


def narrow() -> inventory.Target:
    """The 27B with heads of a width that q8_0 cannot store."""
    target = inventory.known_target("qwen3.6-27b")
    return dataclasses.replace(target, spec=dataclasses.replace(target.spec, head_dim=40))


def test_types_that_a_head_width_rules_out_are_left_out() -> None:
    rows = answer(dataclasses.replace(question(64), target=narrow())).rows
    assert {"f16", "bf16"} <= {row.kv_short for row in rows}
    assert "q8_0" not in {row.kv_short for row in rows}


def test_plain_decoding_has_no_draft_parts() -> None:
    made = planned(64 * K, drafts=(None,))
    assert not {"draft", "draft_kv", "features"} & set(made.pick.parts)
    assert made.pick.budget == 0 and made.pick.tokens == 1
    assert made.pick.total < planned(64 * K).pick.total
