"""Shared runs of tokens are found wherever they stand, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from draftwood.training.overlap import RunIndex, run_hashes

RANDOM = np.random.default_rng(0)


def runs_of(ids: list[int], length: int) -> set[tuple[int, ...]]:
    return {tuple(ids[at : at + length]) for at in range(len(ids) - length + 1)}


@pytest.mark.parametrize("length", [1, 2, 13])
@pytest.mark.parametrize("vocabulary", [2, 5, 49152])
def test_against_comparing_every_run(length: int, vocabulary: int) -> None:
    texts = [RANDOM.integers(0, vocabulary, RANDOM.integers(0, 40)).tolist() for _ in range(4)]
    index = RunIndex(texts, length)
    known = set().union(*(runs_of(text, length) for text in texts))
    assert len(index) == len(known)
    for _ in range(200):
        other = RANDOM.integers(0, vocabulary, RANDOM.integers(0, 40)).tolist()
        if RANDOM.random() < 0.3 and len(texts[0]) > length:
            other += texts[0][-length:]
        assert index.shares_run(other) == bool(known & runs_of(other, length))


@pytest.mark.parametrize("at", [0, 1, 250, 587])
def test_a_run_of_thirteen_is_found_and_one_of_twelve_is_not(at: int) -> None:
    benchmark = RANDOM.integers(0, 49152, 300)
    text = RANDOM.integers(0, 49152, 600)
    index = RunIndex([benchmark.tolist()])
    assert not index.shares_run(text)
    text[at : at + 12] = benchmark[40:52]
    assert not index.shares_run(text)
    text[at : at + 13] = benchmark[40:53]
    assert index.shares_run(text)
    assert index.shares_run(text.astype(np.uint16))


def test_order_counts() -> None:
    index = RunIndex([list(range(13))])
    assert index.shares_run(range(13))
    assert not index.shares_run([1, 0, *range(2, 13)])
    assert not index.shares_run(range(12, -1, -1))


def test_nothing_to_compare() -> None:
    assert not RunIndex([]).shares_run(range(20))
    assert not RunIndex([[1, 2, 3]]).shares_run(range(20))
    assert not RunIndex([range(20)]).shares_run([1, 2, 3])


def test_hashes_of_close_runs_differ() -> None:
    """All runs over {0, 1} of a length: small differences of ids that a plain polynomial is weak against."""
    bits = (np.arange(1 << 13)[:, None] >> np.arange(13)) & 1
    assert len({int(run_hashes(row, 13)[0]) for row in bits}) == 1 << 13
