"""How many tokens a round decides on held-out text, without an engine (SPEC-draft-training section 10).

Exact at temperature 0, because greedy text does not depend on the draft: for every supervised token the draft's block
is replayed, and the slots that are right from the first on are counted; a walk over these counts is the engine's run.
At T > 0 the engine accepts what equals the target's own draw, so the same walk over sampled text is exact there too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from draftwood.training.draft_net import DraftNet
from draftwood.training.fit import Replay
from draftwood.training.packing import Anchors, Document, Rows, pack, place_anchors

ANCHORS_AT_ONCE = 256
LONGEST_SHARE = 0.05
"""Share of the best sequences that the loop control leaves out."""


@dataclass(frozen=True)
class Judged:
    """What a draft did at every anchor of some sequences.

    leading: per sequence int64 [tokens], slots right from the first on, -1 where the token is no anchor. last: per
    sequence int64 [tokens], the last token of the token's answer, -1 outside. right, valid: int64 [B-1], slots that
    were right and slots that count, over all anchors. conditional: int64 [B-1], anchors whose slots before were
    right and whose slot counts.
    """

    leading: list[npt.NDArray[np.int64]]
    last: list[npt.NDArray[np.int64]]
    right: npt.NDArray[np.int64]
    valid: npt.NDArray[np.int64]
    conditional: npt.NDArray[np.int64]

    @cached_property
    def rounds(self) -> list[tuple[int, int, int]]:
        """Per sequence: tokens decided after each answer's first one, rounds, and tokens of whole blocks."""
        slots = len(self.right)
        return [walk(leading, last, slots) for leading, last in zip(self.leading, self.last, strict=True)]

    def tau_chain(self, chosen: npt.NDArray[np.bool_] | None = None) -> float:
        """Tokens a round, pooled over all sequences or the chosen ones."""
        entries = [entry for index, entry in enumerate(self.rounds) if chosen is None or chosen[index]]
        return sum(entry[0] for entry in entries) / max(1, sum(entry[1] for entry in entries))

    @cached_property
    def _counts(self) -> npt.NDArray[np.int64]:
        """Slots right from the first on, of every anchor."""
        return np.concatenate([leading[leading >= 0] for leading in self.leading])

    @property
    def tau_anchor(self) -> float:
        """1 + mean leading slots over all anchors."""
        return 1 + float(self._counts.mean())

    def expected(self, block: int) -> float:
        """1 + mean leading slots of a shorter block, `block` rows."""
        return 1 + float(np.minimum(self._counts, block - 1).mean())

    @property
    def slot_right(self) -> list[float]:
        """Share of anchors whose slot is right, per slot."""
        return [float(r / max(1, v)) for r, v in zip(self.right, self.valid, strict=True)]

    @property
    def slot_conditional(self) -> list[float]:
        """The same over the anchors whose slots before are all right."""
        reached = [int((self._counts >= slot).sum()) for slot in range(1, len(self.right) + 1)]
        return [r / max(1, int(t)) for r, t in zip(reached, self.conditional, strict=True)]

    @property
    def loops(self) -> dict[str, float]:
        """The loop control: tau without the best sequences, share of rounds and of tokens from whole blocks."""
        entries = self.rounds
        decided, rounds = sum(e[0] for e in entries), sum(e[1] for e in entries)
        whole = sum(e[2] for e in entries)
        ranked = sorted((entry for entry in entries if entry[1]), key=lambda entry: entry[0] / entry[1])
        kept = ranked[: len(ranked) - int(np.ceil(LONGEST_SHARE * len(ranked)))]
        return {
            "tau_without_best": sum(e[0] for e in kept) / max(1, sum(e[1] for e in kept)),
            "whole_block_rounds": whole / (len(self.right) + 1) / max(1, rounds),
            "whole_block_tokens": whole / max(1, decided),
        }


def walk(leading: npt.NDArray[np.int64], last: npt.NDArray[np.int64], slots: int) -> tuple[int, int, int]:
    """Play the rounds of one sequence: tokens decided, rounds, and tokens decided by rounds with all slots right.

    An answer's first token comes from the prefill. Every round decides its accepted slots and one token more, as far
    as the answer goes.
    """
    decided = rounds = whole = 0
    at, length = 0, len(last)
    while at < length:
        if last[at] < 0:
            at += 1
            continue
        end = int(last[at])
        while at < end:
            taken = int(leading[at])
            step = min(taken + 1, end - at)
            decided, rounds = decided + step, rounds + 1
            whole += step if taken == slots else 0
            at += step
        at = end + 1
    return decided, rounds, whole


@dataclass(frozen=True)
class Control:
    """A deliberate mistake. shift: of the taps. blind: features are 0. The rest: `Replay.hidden`."""

    shift: int = 0
    blind: bool = False
    causal: bool | None = None
    leak: bool = False
    mask_token: int | None = None


def controls(net: DraftNet) -> dict[str, Control]:
    """The mistakes of SPEC-draft-training section 10 that change how a trained draft is run."""
    return {
        "taps one layer lower": Control(shift=-1),
        "taps one layer higher": Control(shift=1),
        "context features zeroed": Control(blind=True),
        "anchor's feature leaked": Control(leak=True),
        "other in-block mask": Control(causal=not net.shape.causal),
        "other mask token": Control(mask_token=net.shape.mask_token + 1),
    }


@torch.no_grad()
def judge(
    replay: Replay,
    head: Tensor,
    sequences: Sequence[Document],
    row_tokens: int,
    rows_at_once: int,
    control: Control = Control(),
    shortlist: Tensor | None = None,
) -> Judged:
    """Replay every anchor of some sequences (tokens, roles), one sequence a row, cut at `row_tokens`.

    shortlist: int64 token ids that the draft proposes from; None for the whole vocabulary.
    """
    block = replay.net.shape.block
    leading: list[npt.NDArray[np.int64]] = []
    lasts: list[npt.NDArray[np.int64]] = []
    right_sum = torch.zeros(block - 1, dtype=torch.long, device=head.device)
    valid_sum, conditional_sum = torch.zeros_like(right_sum), torch.zeros_like(right_sum)
    narrow = head if shortlist is None else head[shortlist]
    for first in range(0, len(sequences), rows_at_once):
        part = sequences[first : first + rows_at_once]
        rows = _one_a_row(part, row_tokens, rows_at_once).take(torch.arange(rows_at_once), head.device)
        features = replay.features(rows, control.shift)
        if control.blind:
            features = torch.zeros_like(features)
        counts = torch.full_like(rows.tokens, -1)
        for anchors in _all_anchors(rows, block):
            hidden = replay.hidden(features, rows, anchors, control.causal, control.leak, control.mask_token)
            guess = torch.cat([(piece.to(narrow.dtype) @ narrow.T).argmax(-1) for piece in hidden.split(1, 0)])
            guess = guess if shortlist is None else shortlist[guess]
            good = (guess == anchors.labels) & anchors.valid
            run = good.long().cumprod(-1)
            live = anchors.at < rows.tokens.shape[1]
            counts[live.nonzero()[:, 0], anchors.at[live]] = run.sum(-1)[live]
            right_sum += good.sum((0, 1))
            valid_sum += anchors.valid.sum((0, 1))
            before = torch.cat((torch.ones_like(run[..., :1]), run[..., :-1]), -1).bool()
            conditional_sum += (before & anchors.valid).sum((0, 1))
        counted, last = counts.cpu().numpy(), rows.last.cpu().numpy()
        for index, (tokens, _) in enumerate(part):
            length = min(len(tokens), row_tokens)
            leading.append(counted[index, :length])
            lasts.append(last[index, :length])
    return Judged(leading, lasts, *(t.cpu().numpy() for t in (right_sum, valid_sum, conditional_sum)))


def _one_a_row(sequences: Sequence[Document], row_tokens: int, count: int) -> Rows:
    """Rows of one document each, empty ones at the end up to `count`."""
    each = [pack([sequence], row_tokens) for sequence in sequences]
    empty = pack([(np.zeros(1, np.int64), np.zeros(1, np.uint8))], row_tokens)
    each += [empty] * (count - len(each))
    return Rows(*(torch.cat(parts) for parts in zip(*((r.tokens, r.start, r.last) for r in each), strict=True)))


def _all_anchors(rows: Rows, block: int) -> Iterator[Anchors]:
    """Every candidate of the rows, `ANCHORS_AT_ONCE` of each row at a time."""
    length = rows.tokens.shape[1]
    places = torch.arange(length, device=rows.tokens.device).expand_as(rows.tokens)
    at = torch.where(rows.candidates, places, length).sort(1).values
    for first in range(0, length, ANCHORS_AT_ONCE):
        some = at[:, first : first + ANCHORS_AT_ONCE]
        if not (some < length).any():
            break
        missing = ANCHORS_AT_ONCE - some.shape[1]
        yield place_anchors(rows, torch.nn.functional.pad(some, (0, missing), value=length), block)


def look_up(sequences: Sequence[Document], row_tokens: int, block: int) -> Judged:
    """The control that needs no draft: copy what followed the last earlier place with the same two tokens."""
    leading, lasts = [], []
    for tokens, roles in sequences:
        rows = pack([(tokens, roles)], row_tokens)
        ids, last = rows.tokens[0].tolist()[: len(tokens)], rows.last[0].long().numpy()[: len(tokens)]
        counts = np.full(len(ids), -1, np.int64)
        seen: dict[tuple[int, int], int] = {}
        for at in range(1, len(ids)):
            pair = (ids[at - 1], ids[at])
            if last[at] > at:
                earlier, taken = seen.get(pair), 0
                if earlier is not None:
                    while (
                        taken < block - 1
                        and at + taken + 1 <= last[at]
                        and earlier + taken + 1 <= at
                        and ids[earlier + taken + 1] == ids[at + taken + 1]
                    ):
                        taken += 1
                counts[at] = taken
            seen[pair] = at
        leading.append(counts)
        lasts.append(last)
    nothing = np.zeros(block - 1, np.int64)
    return Judged(leading, lasts, nothing, nothing, nothing)
