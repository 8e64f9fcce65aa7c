"""How long a round takes, predicted from bytes and operations at a card's full rates. Torch-free.

Each part of a pass takes the longer of its bytes over the bandwidth and its operations over the rate, and the parts
add up (SPEC-dflash Appendix C). That is a floor: the kernels measured so far reach 47 to 62 % of the bandwidth at 16
rows (KERNEL-NOTES 1). A weight counts with its bytes in the file (DESIGN law 2). As every choice is slowed alike, the
order of the choices holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from draftwood.batch import MAX_ROWS
from draftwood.cache.spec import KVSpec
from draftwood.planner import acceptance
from draftwood.planner.hardware import Card
from draftwood.planner.inventory import Draft, Target, stored_bytes, weights

ROW_TILE = 16
"""A matrix product works on whole tiles of this many rows."""

STATE_PASSES = 3
"""A round reads the recurrent state for its nodes, and reads and writes it when it commits."""


@dataclass(frozen=True)
class CostModel:
    """Times of one target, draft and KV type on one card.

    kv, draft_kv: types of K and V. node_state: bytes of state that a pass writes for each of its rows.
    """

    card: Card
    target: Target
    draft: Draft | None
    kv: tuple[KVSpec, KVSpec]
    draft_kv: tuple[KVSpec, KVSpec]
    node_state: int = 0

    def step_parts(self, rows: int, context: int) -> dict[str, float]:
        """Seconds of a target pass of `rows` rows after `context` tokens, by part."""
        weight_bytes, weight_count, state, row_bytes, width = self._target
        spec = self.target.spec
        parts = {
            "weights": self._part(weight_bytes, 2 * weight_count * _tiles(rows)),
            "attention": self._part(row_bytes * context, 4 * width * rows * context),
        }
        if spec.delta is not None:
            # Decay, prediction, correction and answer: eight operations for each value of the state.
            parts["state"] = self._part(STATE_PASSES * state + self.node_state * rows, 8 * (state // 4) * rows)
        return parts

    def draft_parts(self, context: int) -> dict[str, float]:
        """Seconds of a draft block and of its logits, by part; nothing without a draft."""
        if self.draft is None:
            return {}
        spec, head = self.draft.spec, self.target.head
        rows = spec.block_size
        draft_bytes, draft_count, row_bytes = self._draft
        seen = sum(min(context, window or context) for window in spec.windows)
        return {
            "draft": self._part(draft_bytes, 2 * draft_count * _tiles(rows)),
            "draft attention": self._part(row_bytes * seen, 4 * spec.heads * spec.head_dim * rows * seen),
            "draft head": self._part(head.nbytes, 2 * weights([head]) * _tiles(rows)),
        }

    def step(self, rows: int, context: int) -> float:
        """Seconds of a target pass."""
        return sum(self.step_parts(rows, context).values())

    def round(self, budget: int, context: int) -> float:
        """Seconds of a round that checks `budget` candidates, 0 being plain decoding."""
        drafting = sum(self.draft_parts(context).values()) if budget else 0.0
        return self.step(budget + 1, context) + drafting

    def tokens(self, budget: int) -> float:
        """Tokens that such a round is expected to decide (`acceptance`)."""
        return 1.0 if self.draft is None else acceptance.tokens(budget, self.draft.coarse)

    def speed(self, budget: int, context: int) -> float:
        """Tokens a second, at most."""
        return self.tokens(budget) / self.round(budget, context)

    def best_budget(self, context: int, most: int = MAX_ROWS - 1) -> int:
        """The budget (0..most) that decides the most tokens a second after `context` tokens; 0 is plain decoding.

        Attention's operations grow with rows times context, so it falls as a text grows: a policy asks again.
        """
        if self.draft is None:
            return 0
        return max(range(most + 1), key=lambda budget: self.speed(budget, context))

    def _part(self, nbytes: int, operations: int) -> float:
        return max(nbytes / self.card.bandwidth, operations / self.card.rate)

    @cached_property
    def _target(self) -> tuple[int, int, int, int, int]:
        """Bytes and weights of the matrices, bytes of the states, of a token's K and V, and the attention's width."""
        spec, matrices = self.target.spec, self.target.matrices
        layers = sum(spec.attention)
        row_bytes = layers * spec.kv_heads * sum(kind.row_bytes(spec.head_dim) for kind in self.kv)
        width = layers * spec.heads * spec.head_dim
        return stored_bytes(matrices), weights(matrices), self.target.state_bytes, row_bytes, width

    @cached_property
    def _draft(self) -> tuple[int, int, int]:
        """Bytes and weights of the draft's matrices, and bytes of one layer's K and V of a token."""
        if self.draft is None:
            return 0, 0, 0
        spec, matrices = self.draft.spec, self.draft.matrices
        row_bytes = spec.kv_heads * sum(kind.row_bytes(spec.head_dim) for kind in self.draft_kv)
        return stored_bytes(matrices), weights(matrices), row_bytes


def _tiles(rows: int) -> int:
    return rows + -rows % ROW_TILE
