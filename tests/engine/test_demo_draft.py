"""The shipped draft on the demo model: the tokens of plain decoding, whatever it proposes; and what its file says."""

from __future__ import annotations

import dataclasses
import random
from functools import cache
from pathlib import Path

import pytest

from draftwood import Engine, SamplingParams
from draftwood.bench.prompts.chat import PROMPTS
from draftwood.bench.prompts.humaneval import load_prompts
from draftwood.bench.suites.kv import MIXED
from draftwood.cache.registry import KV_TYPES
from draftwood.engine import fetch
from draftwood.formats.gguf import GGUFFile

BUDGETS = (4, 8, 22, 63)
SEEDS = (1, 2, 3)
MIB = 1 << 20
DRAFT = fetch.drafts_dir() / fetch.registry(fetch.DRAFTS)["demo"].file


@pytest.fixture(scope="module")
def engine(demo_model: Path) -> Engine:
    return Engine.load(target=str(demo_model), draft="demo")


@cache
def prompts() -> tuple[str, ...]:
    """Raw HumanEval prompts, then user messages for the chat template."""
    path = fetch.cached("humaneval")
    if path is None:
        pytest.skip("no HumanEval prompts: run `make setup` (or `draftwood pull humaneval`)")
    return tuple(prompt.text for prompt in (*load_prompts(path), *PROMPTS[:20]))


def text(engine: Engine, index: int) -> str:
    raw = prompts()[index]
    if index < 10:
        return raw
    rendered: str = engine.tokenizer.chat_template.render([{"role": "user", "content": raw}])
    return rendered


def check(engine: Engine, index: int, params: SamplingParams, budgets: tuple[int, ...]) -> None:
    prompt = text(engine, index)
    plain = engine.generate(prompt, params, method="ar").token_ids
    for budget in budgets:
        for method in ("chain", "tree"):
            result = engine.generate(prompt, params, method=method, budget=budget)
            assert result.token_ids == plain, f"prompt {index}, {method} {budget}"


CASES = [
    (index, temperature, seed, budget)
    for index in range(30)
    for temperature in (0.0, 0.8)
    for seed in (SEEDS if temperature else SEEDS[:1])
    for budget in BUDGETS
]


@pytest.mark.parametrize(("index", "temperature", "seed", "budget"), random.Random(4).sample(CASES, 6))
def test_chain_and_tree_give_the_tokens_of_plain_decoding(
    engine: Engine, index: int, temperature: float, seed: int, budget: int
) -> None:
    check(engine, index, SamplingParams(max_tokens=48, temperature=temperature, seed=seed), (budget,))


@pytest.mark.slow
@pytest.mark.parametrize("index", range(30))
def test_every_prompt_temperature_seed_and_budget(engine: Engine, index: int) -> None:
    for temperature in (0.0, 0.8):
        for seed in SEEDS if temperature else SEEDS[:1]:
            check(engine, index, SamplingParams(max_tokens=64, temperature=temperature, seed=seed), BUDGETS)


def over(engine: Engine, kv: str) -> Engine:
    """The same weights and draft over a cache of other KV types."""
    return Engine(dataclasses.replace(engine.config, kv=kv), engine.target, engine.drafter, engine.device)


@pytest.mark.parametrize(("kv", "index", "temperature"), [("q8_0", 2, 0.0), ("q4_0", 7, 0.8), ("tq3_0", 4, 0.0)])
def test_chain_and_tree_over_coarse_caches(engine: Engine, kv: str, index: int, temperature: float) -> None:
    check(over(engine, kv), index, SamplingParams(max_tokens=32, temperature=temperature, seed=5), (8,))


@pytest.mark.slow
@pytest.mark.parametrize("kv", [*KV_TYPES, *MIXED])
def test_every_kv_type_and_mixed_pair(engine: Engine, kv: str) -> None:
    """A raw prompt and two questions each, others for every type."""
    draw = random.Random(kv)
    for index in (draw.randrange(10), *draw.sample(range(10, 30), 2)):
        for temperature, seed in ((0.0, 0), (0.8, 1)):
            params = SamplingParams(max_tokens=48, temperature=temperature, seed=seed)
            check(over(engine, kv), index, params, (8, 22, 63))


def test_the_kv_type_is_the_one_that_is_attended(engine: Engine) -> None:
    """Two bits leave little of what the model would have said."""
    fine, coarse = (
        over(engine, kv).generate(text(engine, 0), SamplingParams(max_tokens=24)) for kv in ("f32", "tq2_0")
    )
    assert fine.token_ids != coarse.token_ids


def test_it_accepts_what_its_card_promises(engine: Engine) -> None:
    """A wrong tap, mask, template or position leaves about one token a round."""
    params = SamplingParams(max_tokens=64)
    stats = [engine.generate(text(engine, index), params, method="chain").stats for index in (3, 8, 12, 20)]
    assert sum(s.emitted - 1 for s in stats) / sum(s.rounds for s in stats) > 2.2


def test_file() -> None:
    draft = GGUFFile.open(DRAFT)
    assert DRAFT.stat().st_size <= 24 * MIB
    assert draft.architecture == "dflash" and draft.require("dflash.attention.causal") is True
    assert draft.require("dflash.target_layers") == [2, 9, 15, 21, 28]
    assert draft.tensors["blk.0.attn_q.weight"].block_type.name == "Q8_0"
