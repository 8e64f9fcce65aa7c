"""One round: propose, verify, accept, commit. Plain decoding, a chain and a tree differ only in the tree's shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from draftwood.batch import ForwardInput
from draftwood.cache.sequence import Sequence
from draftwood.decode.accept import Accepted, accept
from draftwood.decode.drafters.base import Drafter
from draftwood.decode.sampling import Sampler
from draftwood.decode.tree import DraftTree, TreeShape, ancestors
from draftwood.models.base import Model


@dataclass(frozen=True)
class RoundOutcome:
    """What a round decided, read back once.

    emitted: the accepted candidates and then the target's own next token, at least one token.
    accepted: candidates accepted. proposed_depth, nodes: the tree without its root. expected: how many candidates the
    drafter expected to be accepted, 0 from one that has no probabilities.
    """

    emitted: list[int]
    accepted: int
    proposed_depth: int
    nodes: int
    expected: float = 0.0


class Decoder:
    """The decoding of one sequence. `pending` (int64 []) is decided, emitted, and in no cache yet."""

    def __init__(self, target: Model, sequence: Sequence, drafter: Drafter, sampler: Sampler, pending: Tensor) -> None:
        self.target, self.sequence, self.drafter, self.sampler = target, sequence, drafter, sampler
        self.pending = pending

    @torch.inference_mode()
    def round(self, shape: TreeShape) -> RoundOutcome:
        """Run one round with a tree of this shape."""
        tree = self.drafter.propose(self.pending, shape)
        nodes = int(tree.count)
        target_tokens, features = self._verify(tree, nodes)
        accepted = accept(tree, target_tokens, nodes)
        return self._commit(tree, nodes, accepted, features)

    def _verify(self, tree: DraftTree, nodes: int) -> tuple[Tensor, Tensor | None]:
        """The target's own token after each node, int64 [cap], and the features of the nodes."""
        positions = tree.depth[:nodes] + self.sequence.length
        inputs = ForwardInput(
            tokens=tree.tokens[:nodes],
            positions=positions,
            parents=tree.parents[:nodes],
            offsets=(0, nodes),
            wanted=self.drafter.wants,
        )
        output = self.target.decode(inputs, self.sequence)
        logits = self.target.logits(output.hidden)
        drawn = torch.zeros_like(tree.tokens)
        drawn[:nodes] = self.sampler.draw(logits, positions + 1, self._path_tokens(tree, nodes))
        return drawn, output.features

    def _path_tokens(self, tree: DraftTree, nodes: int) -> Tensor:
        """Tokens on each node's own path, int64 [nodes, P], -1 padded; only penalties look at them."""
        if not self.sampler.penalised:
            return tree.tokens.new_empty(nodes, 0)
        path = ancestors(tree, nodes - 1)[:nodes]
        return torch.where(path >= 0, tree.tokens[path.clamp_min(0)], -1)

    def _commit(self, tree: DraftTree, nodes: int, accepted: Accepted, features: Tensor | None) -> RoundOutcome:
        """Keep the accepted path everywhere. The one small read of the round happens here."""
        tokens = tree.tokens[accepted.path.clamp_min(0)]
        # As float64, in which every whole number here is exact.
        scalars = tree.expected, accepted.count, tree.depth.max(), accepted.next_token
        expected, *read = torch.cat((*(scalar.reshape(1) for scalar in scalars), tokens)).tolist()
        count, deepest, following, *path_tokens = map(int, read)
        path = accepted.path[:count]
        self.sequence.commit(path, tokens, count)
        self.drafter.observe(tokens[:count], None if features is None else features[path])
        self.sampler.commit(tokens[:count])
        self.pending = accepted.next_token
        return RoundOutcome([*path_tokens[1:count], following], count - 1, deepest, nodes - 1, expected)
