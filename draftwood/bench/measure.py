"""Repeated measurements as a median and how far they lie apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Sample:
    """The median and the extremes of repeated measurements of one thing, all in its unit."""

    middle: float
    low: float
    high: float

    @property
    def spread_percent(self) -> float:
        """Distance of the extremes in percent of the median; 0.0 for one measurement or a median of 0."""
        return 100 * (self.high - self.low) / self.middle if self.middle else 0.0


def sample(values: Iterable[float]) -> Sample:
    """The Sample of at least one value."""
    numbers = sorted(values)
    return Sample(median(numbers), numbers[0], numbers[-1])


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean; 0.0 of nothing."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0
