"""A round on a GPU: propose, verify, accept and commit without a value read on the host, so that it can be captured.

The host reads one small row when the round is over. What it then knows, it tells the sequence and the drafter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from draftwood.batch import MAX_ROWS, ForwardInput, Nodes
from draftwood.cache.sequence import Sequence
from draftwood.decode.drafters.base import Drafter, Guesses
from draftwood.decode.round import RoundOutcome
from draftwood.decode.sampling import KeyedDraw
from draftwood.decode.tree import ROOT_ONLY, TreeShape
from draftwood.kernels.draft_tree import HEADER, Assumed, Grown, Walked, load_grow, load_walk
from draftwood.models.base import Model

EXPECTED = HEADER + MAX_ROWS
"""Where a round's row has what its drafter expected to be accepted, as the bits of a float64."""


@dataclass(slots=True)
class Work:
    """What the steps of one round hand on; each sets its own.

    guesses: of `draft`. tree: of `build`. drawn, features: of `verify`, the target's own token after each slot (int64
    [64]) and what the drafter wants of the rows. before, walked: of `accept`, the committed length until then (int64
    [1]) and the path. row: of `commit`, what `DeviceRound.outcome` reads.
    """

    shape: TreeShape
    guesses: Guesses = field(init=False)
    tree: Grown = field(init=False)
    drawn: Tensor = field(init=False)
    features: Tensor | None = field(init=False)
    before: Tensor = field(init=False)
    walked: Walked = field(init=False)
    row: Tensor = field(init=False)


class DeviceRound:
    """The rounds of one sequence. pending: int64 [], decided, emitted, and in no cache yet; a round moves it on.

    assumed: acceptance lengths told instead of found, for benchmarks with made-up weights. steps: what a round is made
    of, by name and in order.
    """

    def __init__(
        self,
        target: Model,
        sequence: Sequence,
        drafter: Drafter,
        draws: KeyedDraw,
        pending: Tensor,
        assumed: Assumed | None = None,
    ) -> None:
        self.target, self.sequence, self.drafter, self.draws, self.pending = target, sequence, drafter, draws, pending
        self._assumed = assumed
        self._grow, self._walk = load_grow(target.device), load_walk(target.device)
        self.steps: dict[str, Callable[[Work], None]] = {
            "draft": self.draft,
            "tree build": self.build,
            "verify": self.verify,
            "accept": self.accept,
            "commit": self.commit,
        }

    @torch.inference_mode()
    def run(self, shape: TreeShape) -> Tensor:
        """One round with a tree of this shape: int64 [EXPECTED + 1], what `outcome` reads."""
        work = Work(shape)
        for step in self.steps.values():
            step(work)
        return work.row

    def draft(self, work: Work) -> None:
        """The drafter's candidates for every depth."""
        work.guesses = self.drafter.guess(self.pending, work.shape)

    def build(self, work: Work) -> None:
        """The tree of the best of them."""
        guesses, growth = work.guesses, work.shape.growth
        work.tree = self._grow(
            self.pending, guesses.tokens, guesses.scores, self.sequence.committed, growth, guesses.normaliser
        )

    def verify(self, work: Work) -> None:
        """The target's pass over the tree, and its own token after every node."""
        tree, rows = work.tree, nodes_of(work.shape)
        inputs = ForwardInput(
            tokens=tree.tokens[:rows],
            positions=tree.positions[:rows],
            parents=tree.parents[:rows],
            offsets=(0, rows),
            wanted=self.drafter.wants,
            nodes=Nodes(tree.depth[:rows], tree.ancestors[:rows], tree.order[:rows]),
        )
        output = self.target.decode(inputs, self.sequence)
        drawn = torch.zeros_like(tree.tokens)
        drawn[:rows] = self.draws.draw(self.target.logits(output.hidden), inputs.positions + 1, drawn[:0])
        work.drawn, work.features = drawn, output.features

    def accept(self, work: Work) -> None:
        """The path on which target and tree agree; length, text and pending token move on."""
        tree, committed = work.tree, self.sequence.committed
        work.before = committed.clone()
        work.walked = self._walk(
            tree.tokens, tree.parents, tree.depth, tree.count, work.drawn, committed, self.pending,
            self.sequence.tokens, self._assumed,
        )  # fmt: skip

    def commit(self, work: Work) -> None:
        """The path stays in every state and in the drafter's context; the row for the host."""
        walked = work.walked
        self.sequence.keep(walked.path, walked.count, work.before)
        if self.drafter.wants:
            deepest = min(nodes_of(work.shape), work.shape.deepest + 1)
            self.drafter.keep(work.features, walked.path[:deepest], walked.count)
        work.row = torch.cat((walked.row, work.tree.expected.reshape(1).view(torch.int64)))

    def outcome(self, row: Tensor) -> RoundOutcome:
        """What a round decided, from its row on the host; sequence and drafter are told."""
        count, deepest, following, nodes, *tokens = row[:EXPECTED].tolist()
        self.sequence.kept(count)
        self.drafter.kept(count)
        expected = float(row[EXPECTED:].view(torch.float64))
        return RoundOutcome([*tokens[1:count], following], count - 1, deepest, nodes - 1, expected)


def nodes_of(shape: TreeShape) -> int:
    """Rows of a pass over a tree of this shape."""
    return 1 if shape == ROOT_ONLY else shape.budget + 1
