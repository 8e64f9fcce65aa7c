"""Played scripts: what is fed, what is written, who ends when; and greedy text equals the engine's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from draftwood.decode.params import SamplingParams
from draftwood.engine.engine import Engine
from draftwood.training.generate import Player, WritingRules, Written, choose, play
from draftwood.training.prompts.scripts import ANSWER, USER, Script
from draftwood.training.teachers import open_teacher
from tests.conftest import VENDORED
from tests.training.small import target_file

RULES = WritingRules(stops=(0, 2), turn_end=2, user_cap=6)


def played(scripts: list[Script], sequences: int = 2, rules: WritingRules = RULES, seed: int = 0) -> list[Written]:
    torch.manual_seed(seed)
    taught = open_teacher(target_file(), "cpu")
    player = Player(taught, sequences, 64, rules, max(len(script.tokens) for script in scripts))
    return list(play(player, scripts))


def script(*tokens: int, greedy: bool = True, cap: int = 8) -> Script:
    return Script(tokens, "chat", "test", greedy, cap)


def test_every_script_is_played_once_and_begins_with_what_it_feeds() -> None:
    scripts = [script(10 + i, 20, 30 + i, ANSWER) for i in range(5)]
    results = played(scripts)
    assert sorted(tuple(r.script.tokens) for r in results) == sorted(s.tokens for s in scripts)
    for result in results:
        assert tuple(result.tokens[:3]) == result.script.tokens[:3]
        assert result.roles[:3].tolist() == [0, 0, 0] and set(result.roles[3:].tolist()) == {2}
        written = result.tokens[3:]
        assert len(written) == 8 or written[-1] in RULES.stops
        assert not set(written[:-1].tolist()) & set(RULES.stops)


def test_greedy_answers_are_the_engine_s() -> None:
    engine = Engine.load(str(VENDORED / "models" / "l-b.Q4_1.gguf"), dtype="float32")
    for prompt in ((10, 20, 30), (77, 5, 300, 12)):
        (result,) = played([script(*prompt, ANSWER, cap=20)], sequences=1)
        expected = engine.generate(list(prompt), SamplingParams(max_tokens=20), method="ar").token_ids
        assert result.tokens[len(prompt) :].tolist() == expected


def test_a_user_turn_ends_at_its_cap_and_the_script_goes_on() -> None:
    (result,) = played([script(10, USER, 11, 12, ANSWER)], sequences=1)
    user = np.flatnonzero(result.roles == 1)
    assert len(user) <= 6 and result.tokens[user[-1]] == 2
    assert result.tokens[user[-1] + 1 : user[-1] + 3].tolist() == [11, 12]
    assert result.roles[user[-1] + 3] == 2


def test_sampled_text_follows_the_seed() -> None:
    scripts = [script(10, 20, ANSWER, greedy=False, cap=20)]
    first, again, other = (played(scripts, 1, seed=seed)[0].tokens.tolist() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_draws_follow_the_cut_distribution(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 1.0, 0.0, -4.0])
    draws = choose(logits.expand(40000, 4), torch.full((40000,), temperature), torch.full((40000,), 0.05)).bincount(
        minlength=4
    )
    chances = torch.softmax(logits / temperature, -1)
    chances = torch.where(chances >= 0.05 * chances.max(), chances, 0.0)
    expected = chances / chances.sum()
    assert draws[3] == 0
    torch.testing.assert_close(draws / 40000, expected, atol=0.01, rtol=0)
