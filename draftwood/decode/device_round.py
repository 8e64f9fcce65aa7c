"""A round on a GPU: propose, verify, accept and commit without a value read on the host, so that it can be captured.

The host reads one small row when the round is over. What it then knows, it tells the sequence and the drafter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.batch import MAX_ROWS, ForwardInput, Nodes
from draftwood.cache.sequence import Sequence
from draftwood.decode.drafters.base import Drafter
from draftwood.decode.round import RoundOutcome
from draftwood.decode.sampling import KeyedDraw
from draftwood.decode.tree import ROOT_ONLY, TreeShape
from draftwood.kernels.draft_tree import HEADER, Assumed, Walked, load_walk
from draftwood.models.base import Model

EXPECTED = HEADER + MAX_ROWS
"""Where a round's row has what its drafter expected to be accepted, as the bits of a float64."""


class DeviceRound:
    """The rounds of one sequence. pending: int64 [], decided, emitted, and in no cache yet; a round moves it on.

    assumed: acceptance lengths drawn instead of found, for benchmarks with made-up weights.
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
        self._walk = load_walk(target.device)

    @torch.inference_mode()
    def run(self, shape: TreeShape) -> Tensor:
        """One round with a tree of this shape: int64 [EXPECTED + 1], what `outcome` reads."""
        committed = self.sequence.committed
        tree = self.drafter.grow(self.pending, shape, committed)
        rows = nodes_of(shape)
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
        before = committed.clone()
        walked = self._walk(
            tree.tokens, tree.parents, tree.depth, tree.count, drawn, committed, self.pending, self.sequence.tokens,
            self._assumed,
        )  # fmt: skip
        self.sequence.keep(walked.path, walked.count, before)
        self._observe(walked, output.features, min(rows, shape.deepest + 1))
        return torch.cat((walked.row, tree.expected.reshape(1).view(torch.int64)))

    def _observe(self, walked: Walked, features: Tensor | None, deepest: int) -> None:
        if self.drafter.wants:
            self.drafter.keep(features, walked.path[:deepest], walked.count)

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
