"""A cache that keeps a window reads like one that keeps everything."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from draftwood.batch import MAX_ROWS
from draftwood.cache.kv import KVState, poison
from draftwood.cache.registry import kv_pair
from draftwood.cache.states import draft_state
from draftwood.cache.window import SPARE, WindowedKVState
from draftwood.kernels.attention.block import first_visible

HEADS, WIDTH, CAPACITY = 2, 32, 2048
BLOCK = 16


class Pair:
    """The same rows in a windowed cache and in one of all rows, both poisoned."""

    def __init__(self, window: int, kv: str = "f32", device: str = "cpu") -> None:
        made = draft_state(kv_pair(kv), HEADS, WIDTH, CAPACITY, window, device)
        assert isinstance(made, WindowedKVState)
        self.short, self.whole, self.window = made, KVState(kv_pair(kv), HEADS, WIDTH, CAPACITY, device), window
        poison(self.short)
        poison(self.whole)
        self.device, self._generator = device, torch.Generator().manual_seed(window)

    def rows(self, count: int) -> Tensor:
        return torch.randn(count, HEADS, WIDTH, generator=self._generator).to(self.device)

    def append(self, count: int) -> None:
        keys, values = self.rows(count), self.rows(count)
        for state in (self.short, self.whole):
            state.append(keys, values, count)

    def truncate(self, length: int) -> None:
        for state in (self.short, self.whole):
            state.truncate(length)

    def check(self, block: int = BLOCK) -> None:
        """Stage a block in both; what a block may see is the same, and none of it unwritten."""
        keys, values = self.rows(block), self.rows(block)
        for state in (self.short, self.whole):
            state.stage(keys, values, in_place=True)
        length = self.whole.length
        assert self.short.length == length
        span = first_visible(length, self.window), length + block
        for found, expected in zip(self.short.read(*span), self.whole.read(*span), strict=True):
            assert torch.equal(found, expected) and found.isfinite().all()


@pytest.mark.parametrize("kv", ["f32", "q8_0", "q5_1/q4_0", "tq3_0"])
@pytest.mark.parametrize("window", [1, 8, 64, 100])
def test_any_order_of_appends(kv: str, window: int, device: str) -> None:
    pair, draw = Pair(window, kv, device), random.Random(window)
    pair.check()
    while pair.whole.length < 1500:
        pair.append(draw.choice((1, 2, 5, 16, 31, 64, 65, 70, 130, 300)))
        pair.check(draw.choice((1, BLOCK, MAX_ROWS)))


def test_truncation_after_rejections() -> None:
    """By up to SPARE rows, where as many new ones came since the last time."""
    pair, draw = Pair(64), random.Random(0)
    pair.append(200)
    while pair.whole.length < CAPACITY - 100:
        pair.truncate(pair.whole.length - draw.choice((0, 1, 7, SPARE)))
        pair.check()
        pair.append(draw.choice((SPARE, 40, 64, 100)))
        pair.check()


def test_what_is_gone_is_not_read() -> None:
    pair = Pair(64)
    pair.append(1000)
    with pytest.raises(ValueError, match="cannot truncate 1000 rows to 900"):
        pair.short.truncate(900)
    with pytest.raises(ValueError, match="row 900 was dropped"):
        pair.short.read(900, 1000)
    with pytest.raises(ValueError, match="1001"):
        pair.short.truncate(1001)
    pair.check()


def test_a_new_sequence_starts_anew() -> None:
    pair = Pair(64)
    pair.append(1000)
    pair.truncate(0)
    assert pair.short.first == 0
    pair.check()
    for count in (10, 60, 60, 500):
        pair.append(count)
        pair.check()


def test_while_nothing_was_dropped_any_truncation_is_possible() -> None:
    pair = Pair(64)
    pair.append(100)
    pair.truncate(3)
    pair.check()


def test_snapshots() -> None:
    pair = Pair(64)
    pair.append(300)
    saved = pair.short.snapshot(), pair.whole.snapshot()
    pair.append(500)
    poison(pair.short)
    pair.short.restore(saved[0])
    pair.whole.restore(saved[1])
    assert pair.short.length == 300
    pair.check()


def test_committed_chains_count_too() -> None:
    pair = Pair(64)
    pair.append(64)
    for _ in range(40):
        pair.check(MAX_ROWS)
        for state in (pair.short, pair.whole):
            state.commit(torch.arange(20), 20)
    pair.check(MAX_ROWS)


def test_room_for_what_kernels_write() -> None:
    """They write behind the committed rows, wherever those are, and the host notes how many were kept."""
    pair, draw, moves = Pair(64), random.Random(1), 0
    pair.append(50)
    while pair.whole.length < 1500:
        written = draw.choice((17, 38, MAX_ROWS + BLOCK))
        moves += pair.short.make_room(written)
        assert not pair.whole.make_room(written)
        assert pair.short.held + written <= pair.short.keys.rows
        keys, values, kept = pair.rows(written), pair.rows(written), draw.randint(1, 16)
        pair.short.keys.write(keys, pair.short.held)
        pair.short.values.write(values, pair.short.held)
        pair.short.length += kept
        pair.whole.append(keys, values, kept)
        span = first_visible(pair.whole.length, pair.window), pair.whole.length
        for found, expected in zip(pair.short.read(*span), pair.whole.read(*span), strict=True):
            assert torch.equal(found, expected) and found.isfinite().all()
    least = pair.short.keys.rows - (MAX_ROWS + BLOCK) - (64 + SPARE)  # new rows between two moves
    assert 0 < moves <= 1500 // least


def test_memory_does_not_grow_with_the_context() -> None:
    def size(capacity: int, window: int | None) -> int:
        return draft_state(kv_pair("q8_0"), HEADS, WIDTH, capacity, window, "cpu").nbytes

    assert size(1 << 12, 100) == size(1 << 16, 100) == size(100, None)
    assert size(1 << 12, 1 << 12) == size(1 << 12, None) > 10 * size(1 << 12, 100)
    assert type(draft_state(kv_pair("f32"), HEADS, WIDTH, 64, 64, "cpu")) is KVState


def test_branching_trees_are_refused() -> None:
    with pytest.raises(ValueError, match="chains only"):
        Pair(64).short.stage(torch.zeros(2, HEADS, WIDTH), torch.zeros(2, HEADS, WIDTH), in_place=False)
