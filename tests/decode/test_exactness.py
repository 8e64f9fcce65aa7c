"""The product: chain and tree emit the tokens of plain decoding, whatever the drafter proposes.

Every case runs plain decoding and speculative decoding with a scripted drafter that is right a given share of the
time, and compares the emitted ids and, bit for bit, the features of every committed row.
"""

from __future__ import annotations

import itertools
import random
from functools import cache
from typing import NamedTuple

import pytest
import torch

from draftwood.cache.kv import KVState, poison
from draftwood.cache.registry import KV_TYPES, kv_pair
from draftwood.decode.drafters.base import Drafter
from draftwood.decode.params import SamplingParams
from draftwood.decode.round import Decoder
from draftwood.decode.sampling import Sampler
from draftwood.decode.tree import ROOT_ONLY, TreeShape
from draftwood.models.base import Model
from draftwood.prefill.dense import read_prompt
from tests.conftest import VENDORED
from tests.fakes import RecordingDrafter, ScriptedDrafter
from tests.models.test_oracle import load

MODELS = ("q35-c.Q4_K_M", "q3-b.Q4_K_M", "l-b.Q4_1")
MIXED_KV = ("q8_0/q4_0", "q8_0/tq3_0", "f16/q8_0", "tq4_0/tq3_0", "q5_1/q4_0", "bf16/tq2_0")
KV = (*KV_TYPES, *MIXED_KV)
KINDS = ("chain", "best_first")
BUDGETS = (1, 2, 8, 15, 16, 22, 40, 63)
TEMPERATURES = (0.0, 0.8)
SEEDS = (0, 7)
RIGHT = (0.0, 0.3, 0.7, 0.9, 1.0)
DTYPES = ("float32", "auto")
TOKENS = 40
IN_TEST = 150


class Case(NamedTuple):
    model: str
    kv: str
    kind: str
    budget: int
    temperature: float
    seed: int
    right: float
    dtype: str
    prompt: int
    penalised: bool


def cases() -> list[Case]:
    """Every combination of model, KV type, shape, budget, temperature and seed; the rest is drawn per case."""
    draw = random.Random(20261125)
    return [
        Case(
            *fixed, draw.choice(RIGHT), draw.choice(DTYPES), draw.choice((1, 5, 60, 64, 100, 127)), draw.random() < 0.2
        )
        for fixed in itertools.product(MODELS, KV, KINDS, BUDGETS, TEMPERATURES, SEEDS)
    ]


def marked() -> list[object]:
    """150 cases are in `make test`, the others are slow: of each model, KV type and shape one, the rest anyhow."""
    everything = cases()
    drawn = random.Random(8).sample(range(len(everything)), len(everything))
    first = {everything[i][:3]: i for i in reversed(drawn)}
    chosen = set(first.values())
    chosen |= set([i for i in drawn if i not in chosen][: IN_TEST - len(chosen)])
    return [
        pytest.param(case, id="-".join(map(str, case)), marks=() if i in chosen else pytest.mark.slow)
        for i, case in enumerate(everything)
    ]


@cache
def model(name: str, device: str, dtype: str) -> Model:
    return load(VENDORED / "models" / name, device, dtype)


def params(case: Case) -> SamplingParams:
    penalties = {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.1} if case.penalised else {}
    return SamplingParams(TOKENS, case.temperature, seed=case.seed, **penalties)


def run(case: Case, device: str, drafter: Drafter, shape: TreeShape) -> list[int]:
    target = model(case.model, device, case.dtype)
    draw = random.Random(case.prompt)
    prompt = torch.tensor([draw.randrange(target.spec.vocab) for _ in range(case.prompt)], device=device)
    sequence = target.new_sequence(kv_pair(case.kv), case.prompt + TOKENS)
    for state in sequence.states:
        if isinstance(state, KVState):
            poison(state)
    drafter.start(prompt)
    hidden = read_prompt(target, sequence, prompt, drafter.wants, drafter.observe)
    sampler = Sampler(params(case), target.spec.vocab, device, prompt)
    position = torch.tensor([len(prompt)], device=device)
    pending = sampler.draw(target.logits(hidden), position, prompt.new_empty(1, 0)).squeeze(0)
    decoder = Decoder(target, sequence, drafter, sampler, pending)
    emitted = [int(pending)]
    while len(emitted) < TOKENS:
        outcome = decoder.round(shape)
        assert 1 <= len(outcome.emitted) == outcome.accepted + 1
        emitted += outcome.emitted
    return emitted[:TOKENS]


_PLAIN: dict[object, tuple[list[int], list[torch.Tensor]]] = {}


def plain(case: Case, device: str) -> tuple[list[int], list[torch.Tensor]]:
    """Plain decoding of a case, kept for the cases that differ only in the draft."""
    key = (case._replace(kind="", budget=0, right=0.0), device)
    if key not in _PLAIN:
        recorder = RecordingDrafter(wants=(1, 3))
        _PLAIN[key] = run(case, device, recorder, ROOT_ONLY), recorder.features
    return _PLAIN[key]


@pytest.mark.parametrize("case", marked())
def test_same_tokens_as_plain_decoding(case: Case, device: str) -> None:
    truth, features = plain(case, device)
    target = model(case.model, device, case.dtype)
    drafter = ScriptedDrafter(truth, case.right, case.seed, target.spec.vocab, wants=(1, 3))
    assert run(case, device, drafter, TreeShape(case.kind, case.budget)) == truth
    known = min(len(features), len(drafter.features))
    assert known >= case.prompt + TOKENS - 1
    for row in range(known):
        assert torch.equal(features[row], drafter.features[row]), f"row {row} differs"


def test_a_drafter_that_is_always_right_saves_rounds(device: str) -> None:
    case = Case("q35-c.Q4_K_M", "f32", "chain", 15, 0.0, 0, 1.0, "float32", 5, False)
    truth, _ = plain(case, device)
    target = model(case.model, device, case.dtype)
    drafter = ScriptedDrafter(truth, 1.0, 0, target.spec.vocab, wants=())
    drafter._random.choice = lambda options: options[0]  # type: ignore[method-assign]
    rounds = []
    original = drafter.propose
    drafter.propose = lambda *a: (rounds.append(1), original(*a))[1]  # type: ignore[method-assign, func-returns-value]
    assert run(case, device, drafter, TreeShape("chain", 15)) == truth
    assert len(rounds) == 3  # 39 tokens after the first, sixteen a round


def test_the_number_of_cases() -> None:
    marks = [getattr(parameter, "marks", ()) for parameter in marked()]
    quick = [case for case, mark in zip(cases(), marks, strict=True) if not mark]
    assert len(quick) == IN_TEST
    for kv in KV:
        chosen = [case for case in quick if case.kv == kv]
        assert {(case.model, case.kind) for case in chosen} == set(itertools.product(MODELS, KINDS)), kv
        assert {case.temperature for case in chosen} == set(TEMPERATURES), kv
    assert len(marks) == len(MODELS) * len(KV) * len(KINDS) * len(BUDGETS) * len(TEMPERATURES) * len(SEEDS)
