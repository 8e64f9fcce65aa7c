"""Stand-ins at the seams: a drafter that knows the true continuation and errs on purpose."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from draftwood.decode.drafters.base import Drafter
from draftwood.decode.drafters.none import root_only
from draftwood.decode.tree import DraftTree, TreeShape, build_tree


class RecordingDrafter(Drafter):
    """Proposes nothing and keeps the features of every committed row."""

    name = "recording"

    def __init__(self, wants: tuple[int, ...]) -> None:
        self.wants = wants
        self.tokens: list[int] = []
        self.features: list[Tensor] = []

    def start(self, prompt: Tensor) -> None:
        self.tokens, self.features = [], []

    def observe(self, tokens: Tensor, features: Tensor | None) -> None:
        self.tokens += tokens.tolist()
        if features is not None:
            assert len(features) == len(tokens)
            self.features += list(features)

    def propose(self, pending: Tensor, shape: TreeShape) -> DraftTree:
        return root_only(pending)


class ScriptedDrafter(RecordingDrafter):
    """At each depth the true token is among the candidates with probability `right`, at a random rank.

    truth: the ids that plain decoding emits after the prompt. It also checks that the loop hands it just these.
    """

    name = "scripted"

    def __init__(
        self, truth: list[int], right: float, seed: int, vocab: int, wants: tuple[int, ...], depth: int = 15
    ) -> None:
        super().__init__(wants)
        self.truth, self.right, self.vocab, self.max_depth = truth, right, vocab, depth
        self._random = random.Random(seed)
        self._prompt = 0

    def start(self, prompt: Tensor) -> None:
        super().start(prompt)
        self._prompt = len(prompt)

    def propose(self, pending: Tensor, shape: TreeShape) -> DraftTree:
        done = len(self.tokens) - self._prompt
        if done < len(self.truth):
            assert int(pending) == self.truth[done], "the loop left the true continuation"
        ranks = 8
        tokens, scores = [], []
        for depth in range(1, self.max_depth + 1):
            at = done + depth
            row = self._random.sample(range(self.vocab), ranks)
            if at < len(self.truth) and self._random.random() < self.right:
                true = self.truth[at]
                row = [token for token in row if token != true][: ranks - 1]
                row.insert(self._random.choice((0, 0, 0, 1, 2, len(row))), true)
            else:
                row = [token for token in row if at >= len(self.truth) or token != self.truth[at]]
                row += [token for token in range(self.vocab) if token not in row][: ranks - len(row)]
            tokens.append(row)
            scores.append(sorted((-self._random.expovariate(0.5) for _ in range(ranks)), reverse=True))
        device = pending.device
        return build_tree(pending, torch.tensor(tokens, device=device), torch.tensor(scores, device=device), shape)
