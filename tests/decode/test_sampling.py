from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from draftwood.decode.params import SamplingParams
from draftwood.decode.sampling import (
    Sampler,
    log_exponential_noise,
    min_p_set,
    token_keys,
    top_k_set,
    top_p_set,
)

NO_PROMPT = torch.zeros(0, dtype=torch.int64)


def no_path(rows: int) -> torch.Tensor:
    return torch.zeros(rows, 0, dtype=torch.int64)


def noise(seed: int, positions: torch.Tensor, vocabulary: int) -> torch.Tensor:
    return -log_exponential_noise(token_keys(seed, vocabulary, "cpu"), seed, positions)


def sampler(vocabulary: int, prompt: torch.Tensor = NO_PROMPT, **settings: Any) -> Sampler:
    return Sampler(SamplingParams(**settings), vocabulary, "cpu", prompt)


def chi_square_limit(freedom: int) -> float:
    """The value that chi-square exceeds with probability 3e-5 (Wilson and Hilferty's approximation)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 4 * math.sqrt(spread)) ** 3


def check_fit(drawn: torch.Tensor, expected: torch.Tensor) -> None:
    """`drawn` (int64) is distributed as `expected` (probabilities)."""
    counts = torch.bincount(drawn, minlength=len(expected)).double()
    mean = expected.double() * len(drawn)
    assert float(((counts - mean) ** 2 / mean).sum()) < chi_square_limit(len(expected) - 1)


def check_independent(one: torch.Tensor, other: torch.Tensor, vocabulary: int) -> None:
    table = torch.bincount(one * vocabulary + other, minlength=vocabulary**2).double()
    table = table.view(vocabulary, vocabulary)
    mean = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    assert float(((table - mean) ** 2 / mean).sum()) < chi_square_limit((vocabulary - 1) ** 2)


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 5, 2**64 - 1])
def test_draws_follow_the_softmax(seed: int) -> None:
    logits = torch.linspace(-1, 2, 12)
    positions = torch.arange(20_000)
    drawn = (logits + noise(seed, positions, 12)).argmax(1)
    check_fit(drawn, logits.softmax(0))


def test_the_sampler_divides_by_the_temperature() -> None:
    logits = torch.linspace(-1, 1, 6)
    drawn = sampler(6, temperature=0.5, seed=4).draw(logits.expand(4000, -1), torch.arange(4000), no_path(4000))
    check_fit(drawn, (logits / 0.5).softmax(0))


def test_noise_is_gumbel_and_finite() -> None:
    # The tail is wanted too: exp(-noise) is exponential, so exp(-exp(-noise)) is uniform.
    values = noise(7, torch.arange(64), 50_000)
    assert values.isfinite().all()
    uniform = (-(-values.double()).exp()).exp()
    check_fit((uniform.flatten() * 1000).long().clamp(max=999), torch.full((1000,), 1e-3))
    check_fit(((1 - uniform).flatten() * 1e6).long().clamp(max=30), torch.tensor([1e-6] * 30 + [1 - 30e-6]))


@pytest.mark.parametrize("stride", [1, 2, 64, 4096, 2**31, 2**32])
def test_positions_are_independent(stride: int) -> None:
    logits = torch.zeros(8)
    positions = torch.arange(20_000)
    one = (logits + noise(3, positions, 8)).argmax(1)
    other = (logits + noise(3, positions + stride, 8)).argmax(1)
    check_independent(one, other, 8)


@pytest.mark.parametrize("step", [1, 2, 2**16, 2**31, 2**32, 2**63])
def test_seeds_are_independent(step: int) -> None:
    positions = torch.arange(20_000)
    one, other = (noise(seed, positions, 8).argmax(1) for seed in (11, 11 + step))
    check_independent(one, other, 8)


def test_seed_and_position_do_not_make_up_for_each_other() -> None:
    positions = torch.arange(2000)
    for shift in (1, -1):
        same = noise(5, positions + 1, 64).argmax(1) == noise(5 + shift, positions + 1 - shift, 64).argmax(1)
        assert same.double().mean() < 0.04


def test_tokens_are_independent() -> None:
    values = noise(9, torch.arange(4000), 32)
    correlation = torch.corrcoef(values.T) - torch.eye(32)
    assert correlation.abs().max() < 5 / math.sqrt(4000)


def test_the_same_seed_and_position_give_the_same_token() -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(0)).expand(50, -1)
    positions = torch.arange(50) + 2**33
    first = sampler(300, temperature=1.0, seed=6).draw(logits, positions, no_path(50))
    again = sampler(300, temperature=1.0, seed=6).draw(logits.flip(0), positions.flip(0), no_path(50)).flip(0)
    assert torch.equal(first, again)
    assert first.unique().numel() > 10


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.8},
        {"temperature": 1.3, "top_k": 40},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 30, "top_p": 0.8, "min_p": 0.02},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
        {"temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.2, "presence_penalty": 0.5},
    ],
)
@pytest.mark.parametrize("vocabulary", [509, 40_961])
def test_a_row_is_drawn_alone_as_among_64(settings: dict[str, Any], vocabulary: int) -> None:
    draw = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(64, vocabulary, generator=draw) * 3
    positions = torch.randint(0, 5000, (64,), generator=draw)
    path = torch.randint(-1, vocabulary, (64, 5), generator=draw)
    drawer = sampler(vocabulary, torch.arange(20), seed=12, **settings)
    drawer.commit(torch.randint(0, vocabulary, (30,), generator=draw))
    together = drawer.draw(logits, positions, path)
    for rows in (slice(0, 1), slice(5, 6), slice(17, 33), slice(63, 64)):
        alone = drawer.draw(logits[rows].clone(), positions[rows], path[rows])
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("vocabulary", [17, 4099, 49_152])
def test_noise_and_sets_of_many_rows_at_a_time_have_the_bits_of_one(vocabulary: int) -> None:
    draw = torch.Generator().manual_seed(1)
    positions = torch.randint(0, 5000, (16,), generator=draw)
    values = (torch.randn(16, vocabulary, generator=draw) * 8).round() / 4
    together = noise(5, positions, vocabulary)
    sets = top_k_set(values, 9), top_p_set(values, 0.9), min_p_set(values, 0.1)
    for row in range(16):
        assert torch.equal(noise(5, positions[row : row + 1], vocabulary)[0], together[row])
        one = values[row : row + 1].clone()
        alone = top_k_set(one, 9), top_p_set(one, 0.9), min_p_set(one, 0.1)
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, sets, strict=True))


def reference_sets(row: torch.Tensor, top_k: int, top_p: float, min_p: float) -> tuple[set[int], float]:
    """The allowed tokens by sorting in float64, and how near top_p came to another answer."""
    order = sorted(range(len(row)), key=lambda token: (-float(row[token]), token))
    order = order[:top_k] if top_k else order
    probabilities = row.double()[order].softmax(0)
    before = probabilities.cumsum(0) - probabilities
    margin = float((before - top_p).abs().min()) if top_p < 1 else 1.0
    kept = [token for token, mass in zip(order, before.tolist(), strict=True) if mass < top_p or top_p == 1]
    final = row.double()[kept].softmax(0)
    ratio = final / final.max()
    margin = min(margin, float((ratio - min_p).abs().min())) if min_p else margin
    return {token for token, share in zip(kept, ratio.tolist(), strict=True) if share >= min_p}, margin


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (1, 1.0, 0.0),
        (5, 1.0, 0.0),
        (0, 0.5, 0.0),
        (0, 0.9, 0.0),
        (0, 0.99, 0.0),
        (0, 1.0, 0.1),
        (20, 0.9, 0.05),
    ],
)
@pytest.mark.parametrize("ties", [False, True])
def test_the_sets_are_those_of_a_sort(top_k: int, top_p: float, min_p: float, ties: bool) -> None:
    draw = torch.Generator().manual_seed(top_k)
    rows = torch.randn(30, 200, generator=draw) * torch.linspace(0.1, 5, 30)[:, None]
    values = rows.round() if ties else rows
    kept = values
    if top_k:
        kept = kept.masked_fill(~top_k_set(kept, top_k), -torch.inf)
    if top_p < 1:
        kept = kept.masked_fill(~top_p_set(kept, top_p), -torch.inf)
    if min_p:
        kept = kept.masked_fill(~min_p_set(kept, min_p), -torch.inf)
    compared = 0
    for row in range(30):
        expected, margin = reference_sets(values[row], top_k, top_p, min_p)
        if margin > 1e-6:
            compared += 1
            assert set(kept[row].isfinite().nonzero().flatten().tolist()) == expected
    assert compared > 20


def test_a_filtered_draw_renormalises_over_its_set() -> None:
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5])
    drawer = sampler(6, temperature=1.0, top_k=3, seed=2)
    drawn = drawer.draw(logits.expand(3000, -1), torch.arange(3000), no_path(3000))
    assert int(drawn.max()) == 2
    check_fit(drawn, logits[:3].softmax(0))


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {}])
def test_the_narrowest_set_and_the_lowest_temperature_are_greedy(settings: dict[str, Any]) -> None:
    temperature = 1.0 if settings else 1e-40
    logits = torch.randn(20, 1000, generator=torch.Generator().manual_seed(3)) * 100
    drawer = sampler(1000, temperature=temperature, seed=8, **settings)
    assert torch.equal(drawer.draw(logits, torch.arange(20), no_path(20)), logits.argmax(1))


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.zeros(3, 50_000)
    logits[0, [70, 40_000]] = 1.0
    logits[1, [49_999, 48_000]] = 1.0
    drawn = sampler(50_000).draw(logits, torch.arange(3), no_path(3))
    assert drawn.tolist() == [70, 48_000, 0]
    one = sampler(50_000, temperature=1.0, top_k=1).draw(logits, torch.arange(3), no_path(3))
    assert one.tolist() == [70, 48_000, 0]


def test_penalties_follow_their_formulas() -> None:
    logits = torch.tensor([[3.0, 2.9, -0.1, -0.2, 2.0, 0.0]])
    position = torch.tensor([4])
    prompt = torch.tensor([0])

    def token(path: list[int], committed: list[int], **settings: Any) -> int:
        drawer = sampler(6, prompt, **settings)
        drawer.commit(torch.tensor(committed, dtype=torch.int64))
        return int(drawer.draw(logits, position, torch.tensor([path], dtype=torch.int64).view(1, -1)))

    assert token([], []) == 0
    # The prompt counts for repetition, and for nothing else.
    assert token([], [], repetition_penalty=1.1) == 1
    assert token([], [], presence_penalty=5.0, frequency_penalty=5.0) == 0
    assert token([1], [], repetition_penalty=1.6) == 4
    assert token([0], [1], presence_penalty=1.5) == 4
    assert token([0, 0, -1], [1], frequency_penalty=0.4) == 1
    assert token([-1, 0], [1, 1, 1, -1], frequency_penalty=0.4) == 0
    assert token([-1], [0], presence_penalty=-1.0, repetition_penalty=1.1) == 0


def test_a_negative_logit_is_multiplied() -> None:
    logits = torch.tensor([[-1.0, -1.1]])
    drawer = sampler(2, torch.tensor([0]), repetition_penalty=1.2)
    assert int(drawer.draw(logits, torch.tensor([1]), no_path(1))) == 1


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_drafted_path_weighs_what_committed_text_weighs(temperature: float) -> None:
    """Token by token with commits, and in one pass with paths: the same draws."""
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(12, 8, generator=draw)
    settings = {
        "temperature": temperature,
        "seed": 21,
        "repetition_penalty": 1.4,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "top_p": 0.95,
    }
    prompt = torch.tensor([3, 4, 4])
    stepwise = sampler(8, prompt, **settings)
    text: list[int] = []
    for step in range(12):
        token = stepwise.draw(logits[step : step + 1], torch.tensor([3 + step]), no_path(1))
        text.append(int(token))
        stepwise.commit(token)

    start = 4
    at_once = sampler(8, prompt, **settings)
    at_once.commit(torch.tensor(text[:start]))
    path = torch.full((12 - start, 12), -1)
    for row in range(12 - start):
        path[row, :row] = torch.tensor(text[start : start + row])
    drawn = at_once.draw(logits[start:], torch.arange(3 + start, 15), path)
    assert drawn.tolist() == text[start:]


def test_no_rows_draw_nothing() -> None:
    for settings in ({}, {"temperature": 1.0}):
        drawn = sampler(10, **settings).draw(torch.zeros(0, 10), NO_PROMPT, no_path(0))
        assert drawn.tolist() == []
