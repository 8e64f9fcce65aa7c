"""Rounds as captured graphs: one for each shape of tree, kept from request to request.

A graph holds addresses, so sequence, drafter, draws and the pending token are those of the runner, and a request
borrows them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from draftwood.cache.sequence import Sequence
from draftwood.decode.device_round import EXPECTED, DeviceRound, nodes_of
from draftwood.decode.drafters.base import Drafter
from draftwood.decode.params import SamplingParams
from draftwood.decode.round import RoundOutcome
from draftwood.decode.sampling import KeyedDraw
from draftwood.decode.tree import TreeShape
from draftwood.engine.graphs import capture
from draftwood.errors import UsageError
from draftwood.kernels.draft_tree import Assumed
from draftwood.models.base import Model

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE


@dataclass(frozen=True)
class Captured:
    """A round's graph, which leaves its row in pinned memory of the host."""

    graph: torch.cuda.CUDAGraph
    row: Tensor


class Runner:
    """The rounds of one sequence and drafter at a time on a GPU.

    pool: memory shared with other runners, of which one runs at a time; its own if left out.

    >>> runner = Runner(target, sequence, drafter, KeyedDraw("cuda"))
    >>> runner.begin(SamplingParams())
    >>> runner.pending.copy_(first_token)
    >>> outcome = runner.round(shape)
    """

    def __init__(
        self,
        target: Model,
        sequence: Sequence,
        drafter: Drafter,
        draws: KeyedDraw,
        assumed: Assumed | None = None,
        pool: _POOL_HANDLE | None = None,
    ) -> None:
        self.sequence, self.drafter = sequence, drafter
        self.pending = torch.zeros((), dtype=torch.int64, device=target.device)
        self.rounds = DeviceRound(target, sequence, drafter, draws, self.pending, assumed)
        self._assumed = assumed
        self._captured: dict[TreeShape, Captured | None] = {}
        self._pool = torch.cuda.graph_pool_handle() if pool is None else pool

    def begin(self, params: SamplingParams) -> None:
        """Draw for this request from now on."""
        self.rounds.draws.begin(params)
        if self._assumed is not None:
            self._assumed.counter.zero_()

    def round(self, shape: TreeShape) -> RoundOutcome:
        """Run one round with a tree of this shape: the first one step by step, which compiles what it needs, then by a
        graph.

        A graph's rows are fixed: leaving unlikely candidates out would save nothing, and ask for a graph a floor.
        """
        shape = replace(shape, floor=0.0)
        self.drafter.make_room(nodes_of(shape))
        if shape not in self._captured:
            self._captured[shape] = None
            return self.rounds.outcome(self.rounds.run(shape).cpu())
        captured = self.captured(shape)
        captured.graph.replay()
        torch.cuda.current_stream().synchronize()
        return self.rounds.outcome(captured.row)

    def captured(self, shape: TreeShape) -> Captured:
        """The graph of a shape that has run once."""
        shape = replace(shape, floor=0.0)
        captured = self._captured[shape]
        if captured is None:
            captured = self._captured[shape] = self._capture(shape)
        return captured

    def _capture(self, shape: TreeShape) -> Captured:
        row = torch.empty(EXPECTED + 1, dtype=torch.int64, pin_memory=True)
        graph = capture(lambda: row.copy_(self.rounds.run(shape), non_blocking=True), pool=self._pool)
        return Captured(graph, row)


def assumption(mean: float, device: str) -> Assumed:
    """Acceptance lengths spread evenly around a mean, from the first one on."""
    return Assumed(
        torch.tensor([mean], dtype=torch.float64, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    )


def check_assumed(mean: float, drafter: Drafter, shape: TreeShape) -> None:
    """A UsageError unless rounds with a tree of this shape can decide `mean` tokens on average, all of its spine's."""
    if not drafter.on_device:
        raise UsageError(
            f"an acceptance can be assumed in rounds captured on a GPU only, and {drafter.name!r} drafts on the host "
            "here; give a draft model, as in synthetic:qwen3.6-27b-dflash."
        )
    if shape.branching and shape.chain_seed != "full":
        raise UsageError(
            f"an assumed acceptance needs trees around a whole chain, but the chain seed is {shape.chain_seed!r}; "
            "take 'full', or leave it out."
        )
    longest = min(shape.deepest, drafter.max_depth) + 1
    if mean > longest:
        raise UsageError(
            f"the assumed acceptance is {mean:g}, but a round with {shape.budget} guesses decides at most {longest} "
            "tokens; assume less, or raise the budget."
        )
