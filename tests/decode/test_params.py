from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from draftwood.decode.params import SamplingParams
from draftwood.errors import UsageError


def test_defaults_are_greedy_and_without_penalties() -> None:
    params = SamplingParams()
    assert params.greedy
    assert not params.penalised
    assert params.max_tokens == 128
    assert not SamplingParams(temperature=0.8).greedy


@pytest.mark.parametrize(
    "setting", [{"repetition_penalty": 1.1}, {"frequency_penalty": -0.5}, {"presence_penalty": 0.1}]
)
def test_each_penalty_counts_as_penalised(setting: dict[str, Any]) -> None:
    assert SamplingParams(**setting).penalised


def test_stop_ids_of_any_collection_become_a_tuple() -> None:
    stop: Any = [3, 5]
    assert SamplingParams(stop_token_ids=stop).stop_token_ids == (3, 5)


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_every_64_bit_seed_is_valid(seed: int) -> None:
    assert SamplingParams(seed=seed).seed == seed


def test_is_frozen() -> None:
    params = SamplingParams()
    with pytest.raises(FrozenInstanceError):
        params.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", float("inf")),
        ("presence_penalty", None),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.0),
        ("stop_token_ids", 5),
        ("stop_token_ids", "ab"),
        ("stop_token_ids", (1, -1)),
        ("stop_token_ids", tuple("x" * 500)),
        ("ignore_eos", 1),
    ],
)
def test_a_wrong_value_is_named_in_one_short_sentence(name: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} is ")
    assert "must be" in message
    assert len(message) < 300
    assert "\n" not in message


def test_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import draftwood.decode.params, draftwood.decode.stats"
    subprocess.run([sys.executable, "-c", code], check=True)
