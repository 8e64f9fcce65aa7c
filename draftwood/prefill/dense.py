"""Reading a prompt in full, pass by pass, with a fixed workspace (DESIGN law 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from draftwood.batch import PASS_TOKENS, ForwardInput
from draftwood.cache.sequence import Sequence
from draftwood.models.base import Model

Observer = Callable[[Tensor, Tensor | None], None]
"""Called after each pass with its tokens int64 [n] and the wanted features float32 [n, ...] or None."""


def read_prompt(
    target: Model,
    sequence: Sequence,
    prompt: Tensor,
    wanted: tuple[int, ...] = (),
    observe: Observer | None = None,
    pass_tokens: int = PASS_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Commit the prompt, int64 [T], to an empty (or granule-aligned) sequence.

    Returns the last row of the head's input, float32 [1, E]. `progress` is told the tokens read so far.
    """
    last = None
    for first in range(0, len(prompt), pass_tokens):
        tokens = prompt[first : first + pass_tokens]
        positions = torch.arange(sequence.length, sequence.length + len(tokens), device=tokens.device)
        output = target.prefill(ForwardInput(tokens, positions, offsets=(0, len(tokens)), wanted=wanted), sequence)
        if observe is not None:
            observe(tokens, output.features)
        if progress is not None:
            progress(first + len(tokens))
        # A copy, and no name for the rest, so that one pass's rows are gone before the next one needs room.
        last = output.hidden[-1:].clone()
        del output
    if last is None:
        raise ValueError("an empty prompt has no last row")
    return last
