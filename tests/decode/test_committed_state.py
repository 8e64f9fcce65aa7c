"""What rounds leave in every state is what plain decoding of the same tokens leaves, bit for bit, however many they
were and however much each of them accepted."""

from __future__ import annotations

import random
from itertools import count

import pytest
import torch

from draftwood import Engine
from draftwood.batch import MAX_ROWS
from draftwood.cache.sequence import Sequence
from draftwood.decode.drafters.base import Drafter
from draftwood.decode.drafters.none import NoDrafter
from draftwood.decode.params import SamplingParams
from draftwood.decode.round import Decoder
from draftwood.decode.sampling import KeyedDraw, Sampler
from draftwood.decode.tree import ROOT_ONLY, TreeShape
from draftwood.engine.runner import Runner, assumption
from draftwood.prefill.dense import read_prompt
from tests.decode.test_exactness import model
from tests.fakes import RecordingDrafter, ScriptedDrafter
from tests.models.test_whole_pass import assert_same_states, drawn, empty_sequence

TINY = "synthetic:qwen3.6-27b-tiny"
PROMPT, ROOM = 70, 4096

SHAPES = (
    TreeShape("chain", 15),
    TreeShape("best_first", 8, chain_seed="full"),
    TreeShape("best_first", 22, chain_seed="full"),
    TreeShape("best_first", 63, chain_seed="full"),
)


class Rounds:
    """Captured rounds whose accepted lengths are drawn here, and plain decoding of what they committed."""

    def __init__(self, engine: Engine, room: int) -> None:
        self.model, self.room, device = engine.target.model, room, engine.device
        self.drafted, self.plain = (empty_sequence(self.model, engine.config.kv, room) for _ in range(2))
        self.empty = self.drafted.snapshot()
        self.assumed = assumption(1.0, device)
        self.runner = Runner(self.model, self.drafted, engine.drafter, KeyedDraw(device), self.assumed)
        self.repeater = Runner(self.model, self.plain, NoDrafter(), KeyedDraw(device))

    def run(self, seed: int, rounds: int) -> int:
        """So many rounds after a new prompt, fewer where the room ends; how many there were."""
        rng, prompt = random.Random(seed), drawn(self.model, PROMPT, seed)
        self._read(self.drafted, prompt, self.runner)
        done = 0
        while done < rounds and self.drafted.length + MAX_ROWS <= self.room:
            # One or two tokens as often as three or more, as with a real draft.
            self.assumed.mean.fill_(rng.choice((1, 2, *range(3, 17, 6), rng.randint(3, 16))))
            before = self.drafted.length
            outcome = self.runner.round(rng.choice(SHAPES))
            assert self.drafted.length == before + outcome.accepted + 1
            done += 1
        self._repeat(prompt)
        return done

    def _repeat(self, prompt: torch.Tensor) -> None:
        self._read(self.plain, prompt, self.repeater)
        for token in self.drafted.tokens[len(prompt) : self.drafted.length].unbind():
            self.repeater.pending.copy_(token)
            self.repeater.round(ROOT_ONLY)
        assert_same_states(self.drafted, self.plain.snapshot(), f"after {self.drafted.length} tokens")

    def _read(self, sequence: Sequence, prompt: torch.Tensor, runner: Runner) -> None:
        sequence.restore(self.empty)
        drafter = runner.drafter
        drafter.start(prompt)
        read_prompt(self.model, sequence, prompt, drafter.wants, drafter.observe)
        runner.begin(SamplingParams())
        runner.pending.fill_(1)


@torch.inference_mode()
def check(engine: Engine, room: int, rounds: int, each: int) -> None:
    """each: rounds a prompt, at most."""
    made, done = Rounds(engine, room), 0
    for seed in count():
        done += made.run(seed, min(each, rounds - done))
        if done >= rounds:
            break


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rounds", "kv"), [(300, "f16"), (300, "q8_0"), pytest.param(10_000, "q8_0", marks=pytest.mark.slow)]
)
def test_captured_rounds(gpu: str, rounds: int, kv: str) -> None:
    engine = Engine.load(TINY, draft=f"{TINY}-dflash:q8_0", max_context=ROOM, kv=kv, assume_acceptance=1.0)
    check(engine, ROOM, rounds, 1000)


def decoded(device: str, drafter: Drafter, shape: TreeShape, tokens: int) -> tuple[Sequence, list[int]]:
    """A sequence after at least so many tokens of greedy decoding, and those that were emitted."""
    target = model("q35-c.Q4_K_M", device, "auto")
    prompt = drawn(target, PROMPT, 3)
    sequence = empty_sequence(target, "q8_0", PROMPT + tokens)
    drafter.start(prompt)
    hidden = read_prompt(target, sequence, prompt, drafter.wants, drafter.observe)
    sampler = Sampler(SamplingParams(tokens), target.spec.vocab, device, prompt)
    pending = sampler.draw(target.logits(hidden), prompt.new_tensor([PROMPT]), prompt.new_empty(1, 0)).squeeze(0)
    decoder, emitted = Decoder(target, sequence, drafter, sampler, pending), [int(pending)]
    while sequence.length < PROMPT + tokens:
        emitted += decoder.round(shape).emitted
    return sequence, emitted


@pytest.mark.parametrize("shape", [TreeShape("chain", 15), TreeShape("best_first", 22)], ids=lambda shape: shape.kind)
def test_rounds_step_by_step(shape: TreeShape, device: str) -> None:
    _, truth = decoded(device, RecordingDrafter(()), ROOT_ONLY, 120)
    vocab = model("q35-c.Q4_K_M", device, "auto").spec.vocab
    sequence, _ = decoded(device, ScriptedDrafter(truth, 0.8, 0, vocab, ()), shape, 90)
    repeated, _ = decoded(device, RecordingDrafter(()), ROOT_ONLY, sequence.length - PROMPT)
    assert_same_states(sequence, repeated.snapshot(), shape.kind)
