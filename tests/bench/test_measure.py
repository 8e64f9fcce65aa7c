"""Medians and spreads."""

from __future__ import annotations

from draftwood.bench.measure import mean, sample


def test_sample() -> None:
    measured = sample([30.0, 10.0, 20.0])
    assert (measured.middle, measured.low, measured.high) == (20.0, 10.0, 30.0)
    assert measured.spread_percent == 100.0
    assert sample([5.0]).spread_percent == 0.0
    assert sample([0.0, 0.0]).spread_percent == 0.0


def test_mean() -> None:
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert mean([]) == 0.0
