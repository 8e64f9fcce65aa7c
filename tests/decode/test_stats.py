from __future__ import annotations

import re

import pytest

from draftwood.decode.stats import Statistics, StatisticsRecorder


def test_a_drafting_run_follows_the_definitions() -> None:
    recorder = StatisticsRecorder("tree", budget=22, prompt_tokens=100, block_size=16, reason="asked")
    for accepted, proposed in ((3, 15), (0, 15), (15, 15), (1, 2)):
        recorder.record_round(accepted, proposed, nodes=22)
    stats = recorder.finish(emitted=24, prefill_seconds=0.5, decode_seconds=2.0)
    assert (stats.method, stats.budget, stats.prompt_tokens, stats.reason) == ("tree", 22, 100, "asked")
    assert (stats.emitted, stats.rounds, stats.nodes, stats.deepest) == (24, 4, 88, 15)
    assert stats.acceptance_length == pytest.approx((1 + 3 + 0 + 15 + 1 + 3) / 4)
    assert stats.accept_percent == pytest.approx(100 * 23 / 64)
    # Three rounds proposed depth 3 and more; two of them accepted depth 3, one depth 4.
    assert stats.acceptance_by_depth[:4] == pytest.approx((3 / 4, 2 / 4, 2 / 3, 1 / 3))
    assert stats.acceptance_by_depth[14] == pytest.approx(1 / 3)
    assert stats.prefill_tokens_per_second == pytest.approx(200)
    assert stats.decode_tokens_per_second == pytest.approx(11.5)


def test_the_summary_has_the_layout_that_scripts_parse() -> None:
    stats = Statistics("chain", 15, 9, 24, 4, 0.5, 2.0, acceptance_by_depth=(0.5,) * 15, block_size=16)
    first, second = stats.summary_lines()
    found = re.fullmatch(r"\[dflash\] generated (\d+) tokens in ([\d.]+) s\s+->\s+([\d.]+) tok/s", first)
    assert found is not None
    assert found.groups() == ("24", "2.000", "11.50")
    pattern = r"\[dflash\] (\d+) draft steps, accepted=(\d+)/(\d+) \(([\d.]+)% per step\), avg commit/step=([\d.]+)"
    found = re.fullmatch(pattern, second)
    assert found is not None
    assert found.groups() == ("4", "23", "64", "35.9", "5.75")


def test_an_assumed_acceptance_is_called_so() -> None:
    recorder = StatisticsRecorder("tree", budget=8, prompt_tokens=3, assumed=4.5)
    recorder.record_round(3, 8, 8)
    stats = recorder.finish(5, 0.5, 1.0)
    assert stats.assumed == 4.5
    assert stats.summary_lines()[1].endswith("avg commit/step=4.00 (acceptance assumed, not measured)")


def test_without_a_block_the_deepest_proposal_counts() -> None:
    recorder = StatisticsRecorder("tree", budget=8, prompt_tokens=3)
    recorder.record_round(0, 0, 0)
    recorder.record_round(2, 4, 6)
    stats = recorder.finish(emitted=5, prefill_seconds=1.0, decode_seconds=1.0)
    assert stats.slots == 10
    assert stats.accept_percent == pytest.approx(100 * stats.acceptance_length / 5)
    assert stats.acceptance_by_depth == (1.0, 1.0, 0.0, 0.0)


def test_plain_decoding_has_no_percentage_and_one_line() -> None:
    recorder = StatisticsRecorder("ar", budget=0, prompt_tokens=3)
    for _ in range(9):
        recorder.record_round(0, 0, 0)
    stats = recorder.finish(emitted=10, prefill_seconds=1.0, decode_seconds=3.0)
    assert stats.acceptance_length == 1.0
    assert stats.accept_percent is None
    assert stats.acceptance_by_depth == ()
    assert len(stats.summary_lines()) == 1
    assert stats.decode_tokens_per_second == pytest.approx(3.0)


@pytest.mark.parametrize("emitted", [0, 1])
def test_no_round_and_no_time_divide_nothing(emitted: int) -> None:
    stats = StatisticsRecorder("chain", 15, 3, block_size=16).finish(emitted, 0.0, 0.0)
    assert stats.acceptance_length == 0.0
    assert stats.accept_percent is None
    assert stats.prefill_tokens_per_second == stats.decode_tokens_per_second == 0.0
    assert len(stats.summary_lines()) == 1
