"""What requests would allocate and compile at their first time, done when an engine is loaded.

The widest graph comes first, so that the others fit into what it leaves in their pool. A capture gives back all that
torch's pool holds for nobody, so the longest pass over a prompt comes last.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from draftwood.batch import GRANULE, PASS_TOKENS
from draftwood.decode.device_round import nodes_of
from draftwood.decode.params import SamplingParams
from draftwood.decode.tree import TreeShape
from draftwood.engine.runner import Runner
from draftwood.kernels.scratch import segment_rows, whole
from draftwood.prefill.dense import read_prompt


@torch.inference_mode()
def warm_up(runner: Runner, shapes: Iterable[TreeShape]) -> None:
    """Capture the rounds of these shapes, and read prompts that take as much as any; the sequence is empty then."""
    sequence, spec = runner.sequence, runner.rounds.target.spec
    for shape in sorted(shapes, key=nodes_of, reverse=True):
        _read(runner, 1)
        runner.round(shape)
        runner.captured(shape)
    # Scratch stops growing once keys and values no longer fit into one segment: a longer context adds time alone.
    tokens = min(PASS_TOKENS, sequence.capacity)
    segment = whole(segment_rows(sequence.capacity, spec.kv_heads, spec.head_dim), GRANULE)
    for start in sorted({0, min(segment, sequence.capacity - tokens)}):
        _read(runner, tokens, start)
    sequence.truncate(0)


def _read(runner: Runner, count: int, start: int = 0) -> None:
    """A prompt of `count` tokens 0, after `start` tokens that nobody reads, and the first token after it."""
    model, sequence, drafter = runner.rounds.target, runner.sequence, runner.drafter
    prompt = torch.zeros(count, dtype=torch.int64, device=model.device)
    sequence.truncate(0)
    sequence.skip(start)
    drafter.start(prompt)
    hidden = read_prompt(model, sequence, prompt, drafter.wants, drafter.observe)
    runner.begin(SamplingParams())
    place, no_path = prompt.new_tensor([start + count]), prompt.new_empty(1, 0)
    runner.pending.copy_(runner.rounds.draws.draw(model.logits(hidden), place, no_path).squeeze(0))
