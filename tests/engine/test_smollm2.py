"""The real demo model against llama.cpp: logits, greedy ids, and the same ids with look-up drafting."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from draftwood import Engine, SamplingParams
from draftwood.batch import ForwardInput
from draftwood.cache import coded
from draftwood.cache.registry import KV_TYPES, kv_pair
from tests.models.test_oracle import relative

TOLERANCES = {"cpu": (1.5e-2, 3.7e-2), "cuda": (2e-3, 4.5e-3)}
"""Of the mean and of each prompt. llama.cpp's own error on this file is 0.8e-2 to 3.7e-2 (oracle README). A GPU's
operands are halves: simulated 0.4e-3 to 1.4e-3 by prompt, and luck is a factor of three (docs/log.md)."""


KV = (*KV_TYPES, "q4_0/tq4_0")


@pytest.fixture(scope="module")
def engines(demo_model: Path) -> Any:
    loaded: dict[str, Engine] = {}

    def get(dtype: str, kv: str = "f32", device: str = "cpu") -> Engine:
        """An engine of this dtype, its caches from now on of this KV type."""
        key = dtype + device
        if key not in loaded:
            loaded[key] = Engine.load(str(demo_model), draft="lookup", dtype=dtype, kv=kv, device=device)
        loaded[key].kv = kv_pair(kv)
        return loaded[key]

    return get


@pytest.fixture(scope="module")
def reference(oracle: Path) -> dict[str, Any]:
    return dict(np.load(oracle / "smollm2" / "smollm2.npz"))


def decoded_logits(engine: Engine, ids: list[int]) -> Any:
    """The last position's logits when the whole prompt goes through decode passes, the form of plain decoding."""
    model = engine.target.model
    sequence = model.new_sequence(kv_pair("f32"), len(ids))
    tokens = torch.tensor(ids, dtype=torch.long, device=model.device)
    for first in range(0, len(ids), 16):
        part = tokens[first : first + 16]
        nodes = torch.arange(len(part), device=model.device)
        hidden = model.decode(ForwardInput(part, nodes + first, nodes - 1), sequence).hidden
        sequence.commit(nodes, part, len(part))
    return model.logits(hidden[-1:])[0].cpu().numpy()


def test_float32_logits_and_greedy_ids(engines: Any, reference: dict[str, Any], device: str) -> None:
    engine = engines("float32", device=device)
    for i in range(int(reference["n_prompts"])):
        ids = reference[f"prompt_{i}"].tolist()
        assert relative(engine.logits(ids)[-1], reference[f"deq_logits_last_{i}"]) < 1e-5
        greedy = SamplingParams(max_tokens=64, ignore_eos=True)
        found = engine.generate(ids, greedy, method="tree", budget=8).token_ids
        assert found == reference[f"deq_greedy_ids_{i}"].tolist()


def test_the_fast_form_stays_within_its_rounding(engines: Any, reference: dict[str, Any], device: str) -> None:
    """On a CPU as close as llama.cpp itself."""
    engine, (mean, each) = engines("auto", device=device), TOLERANCES[device]
    for score in (lambda ids: engine.logits(ids)[-1], lambda ids: decoded_logits(engine, ids)):
        errors = [
            relative(score(reference[f"prompt_{i}"].tolist()), reference[f"deq_logits_last_{i}"])
            for i in range(int(reference["n_prompts"]))
        ]
        assert np.mean(errors) <= mean, errors
        assert max(errors) <= each, errors


def test_prompts_and_templates(engines: Any, oracle: Path) -> None:
    vectors = json.loads((oracle / "smollm2" / "smollm2.json").read_text())
    tokenizer = engines("auto").tokenizer
    for prompt in vectors["prompts"]:
        if prompt["messages"]:
            assert tokenizer.chat_template.render(prompt["messages"]) == prompt["text"]
        assert tokenizer.encode(prompt["text"], special=True) == prompt["ids"]
    for chat in vectors["chat"]:
        text = tokenizer.chat_template.render(chat["messages"], add_generation_prompt=chat["add_generation_prompt"])
        assert text == chat["text"]
        assert tokenizer.encode(text, special=True) == chat["ids"]


def humaneval() -> list[tuple[str, str]]:
    """The ten prompts, or none where the data was not fetched."""
    from draftwood.bench.prompts.humaneval import load_prompts
    from draftwood.engine.fetch import cached

    path = cached("humaneval")
    return [] if path is None else [(prompt.name, prompt.text) for prompt in load_prompts(path)]


CASES = [(i, temperature, method) for i in range(10) for temperature in (0.0, 0.8) for method in ("chain", "tree")]
QUICK = {(0, 0.0, "tree"), (1, 0.8, "chain"), (3, 0.0, "chain"), (4, 0.8, "tree"), (6, 0.0, "tree"), (9, 0.8, "chain")}


@pytest.mark.parametrize(("index", "temperature", "method"), [c for c in CASES if c in QUICK])
def test_lookup_changes_no_token(engines: Any, index: int, temperature: float, method: str) -> None:
    same_tokens(engines("auto"), index, temperature, method, 48)


@pytest.mark.slow
@pytest.mark.parametrize(("index", "temperature", "method"), CASES)
def test_lookup_changes_no_token_in_full(engines: Any, index: int, temperature: float, method: str) -> None:
    same_tokens(engines("auto"), index, temperature, method, 128)


QUICK_KV = ("q8_0", "q4_0/tq4_0", "tq3_0")


@pytest.mark.parametrize("kv", [pytest.param(k, marks=() if k in QUICK_KV else pytest.mark.slow) for k in KV])
def test_every_kv_type_with_drafts(engines: Any, kv: str) -> None:
    engine = engines("auto", kv)
    for index, temperature, method in ((0, 0.0, "tree"), (3, 0.8, "chain")):
        same_tokens(engine, index, temperature, method, 32)


def same_tokens(engine: Engine, index: int, temperature: float, method: str, tokens: int) -> None:
    prompts = humaneval()
    if not prompts:
        pytest.skip("no HumanEval prompts: run `make setup` (or `draftwood pull humaneval`)")
    params = SamplingParams(max_tokens=tokens, temperature=temperature, seed=index)
    plain = engine.generate(prompts[index][1], params, method="ar")
    drafted = engine.generate(prompts[index][1], params, method=method)
    assert drafted.token_ids == plain.token_ids
    assert drafted.text == plain.text
    assert drafted.finish_reason == plain.finish_reason


# ---------------------------------------------------------------------------------- what a KV type costs in fidelity


class Fidelity(NamedTuple):
    """Mean Kullback-Leibler divergence from f16 in nats, and the share of positions with the same likeliest token."""

    divergence: float
    same_top: float


@pytest.fixture(scope="module")
def fidelity(engines: Any) -> Any:
    """Measures a KV type on the first tokens of the HumanEval programs."""
    text = programs()
    ids: dict[int, list[int]] = {}
    reference: dict[int, Any] = {}

    def logs(kv: str, count: int) -> Any:
        engine = engines("float32", kv)
        if count not in ids:
            ids[count] = engine.tokenizer.encode(text, special=False)[:count]
        return torch.from_numpy(engine.logits(ids[count])).log_softmax(-1)

    def measure(kv: str, count: int) -> Fidelity:
        if count not in reference:
            reference[count] = logs("f16", count)
        expected, found = reference[count], logs(kv, count)
        divergence = (expected.exp() * (expected - found)).sum(-1).mean()
        same = (expected.argmax(-1) == found.argmax(-1)).float().mean()
        return Fidelity(float(divergence), float(same))

    return measure


def programs() -> str:
    """All HumanEval programs; the test is skipped where the data was not fetched."""
    from draftwood.engine.fetch import cached

    path = cached("humaneval")
    if path is None:
        pytest.skip("no HumanEval prompts: run `make setup` (or `draftwood pull humaneval`)")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        tasks = [json.loads(line) for line in lines]
    return "".join(task["prompt"] + task["canonical_solution"] for task in tasks)


def test_eight_bits_cost_next_to_nothing(fidelity: Any) -> None:
    found = fidelity("q8_0", 320)
    assert found.divergence <= 5e-4 and found.same_top >= 0.99


@pytest.mark.slow
def test_what_the_kv_types_cost(fidelity: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 3600
    rotated = {kv: fidelity(kv, count) for kv in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "tq4_0", "tq3_0", "tq2_0")}
    assert rotated["q8_0"].divergence <= 5e-4 and rotated["q8_0"].same_top >= 0.99
    order = [rotated[kv].divergence for kv in ("q8_0", "q5_0", "q4_0", "tq3_0", "tq2_0")]
    assert order == sorted(order)
    identity = torch.eye(64)
    monkeypatch.setattr(coded, "rotation", lambda width, device: (identity, identity))
    plain = {kv: fidelity(kv, count).divergence for kv in ("q8_0", "q4_0")}
    assert rotated["q8_0"].divergence <= plain["q8_0"]
    assert rotated["q4_0"].divergence <= plain["q4_0"]
    assert rotated["tq4_0"].divergence <= plain["q4_0"]
