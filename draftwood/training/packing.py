"""Documents side by side in rows of equal length, so that one compiled shape serves every step.

Letters: n rows, S tokens of a row, A anchors of a row, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from draftwood.training.roles import SUPERVISED, stretches

OPEN_ROWS = 32
"""Rows that a document may still be put into; enough to fill them to a few percent."""


@dataclass(frozen=True)
class Rows:
    """Packed documents.

    tokens: int64 [n, S], 0 behind the last document. start: int64 [n, S], where the token's document begins; a
    token behind the last document is its own. last: int64 [n, S], the last token of the supervised stretch that the
    token belongs to, -1 where it is not supervised.
    """

    tokens: Tensor
    start: Tensor
    last: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Tensor, device: torch.device | str) -> Rows:
        """Some rows, int64 on the device."""
        return Rows(*(part[rows].to(device).long() for part in (self.tokens, self.start, self.last)))

    @property
    def positions(self) -> Tensor:
        """int64 [n, S]: positions from 0 in every document."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) - self.start

    @property
    def candidates(self) -> Tensor:
        """bool [n, S]: tokens that may be an anchor, because they and the next one are supervised."""
        return self.last > torch.arange(self.tokens.shape[1], device=self.tokens.device)


Document = tuple[npt.NDArray[np.generic], npt.NDArray[np.uint8]]
"""Token ids and roles of one sequence."""


def pack(documents: Iterable[Document], row_tokens: int) -> Rows:
    """Put documents into rows of `row_tokens`, each where it leaves the least room; longer ones are cut.

    Kept on the CPU in narrow types; `Rows.take` widens what a step uses.
    """
    rows: list[list[Document]] = []
    room: list[int] = []
    open_rows: list[int] = []
    for tokens, roles in documents:
        tokens, roles = tokens[:row_tokens], roles[:row_tokens]
        fitting = [row for row in open_rows if room[row] >= len(tokens)]
        if fitting:
            row = min(fitting, key=room.__getitem__)
        else:
            row = len(rows)
            rows.append([])
            room.append(row_tokens)
            open_rows.append(row)
            if len(open_rows) > OPEN_ROWS:
                open_rows.remove(min(open_rows, key=room.__getitem__))
        rows[row].append((tokens, roles))
        room[row] -= len(tokens)
    tokens_out = np.zeros((len(rows), row_tokens), np.int32)
    start_out = np.tile(np.arange(row_tokens, dtype=np.int16), (len(rows), 1))
    last_out = np.full((len(rows), row_tokens), -1, np.int16)
    for index, members in enumerate(rows):
        at = 0
        for tokens, roles in members:
            end = at + len(tokens)
            tokens_out[index, at:end] = tokens
            start_out[index, at:end] = at
            last_out[index, at:end] = stretch_ends(roles == SUPERVISED, at)
            at = end
    return Rows(torch.from_numpy(tokens_out), torch.from_numpy(start_out), torch.from_numpy(last_out))


def stretch_ends(inside: npt.NDArray[np.bool_], offset: int = 0) -> npt.NDArray[np.int16]:
    """For every token the last one of its unbroken stretch of `inside`, -1 outside; both counted from `offset`."""
    ends = np.full(len(inside), -1, np.int16)
    for first, stop in stretches(inside):
        ends[first:stop] = offset + stop - 1
    return ends


@dataclass(frozen=True)
class Anchors:
    """Blocks to replay in rows.

    at: int64 [n, A], the anchors' places in their rows, ascending; S for a block that is only padding.
    start: int64 [n, A], where each anchor's document begins (S for padding). tokens: int64 [n, A].
    labels: int64 [n, A, B-1], the tokens that slots 1 .. B-1 should guess. valid: bool [n, A, B-1], slots that lie
    in the anchor's answer; its end token counts, what follows does not.
    """

    at: Tensor
    start: Tensor
    tokens: Tensor
    labels: Tensor
    valid: Tensor


def draw_anchors(rows: Rows, count: int, block: int, generator: torch.Generator) -> Anchors:
    """`count` anchors of every row, uniform over its candidates without replacement."""
    keys = torch.rand(rows.tokens.shape, generator=generator, device=rows.tokens.device)
    keys = torch.where(rows.candidates, keys, -1.0)
    best, at = keys.topk(min(count, keys.shape[1]), dim=1)
    length = rows.tokens.shape[1]
    return place_anchors(rows, torch.where(best >= 0, at, length).sort(1).values, block)


def place_anchors(rows: Rows, at: Tensor, block: int) -> Anchors:
    """The blocks at given places: int64 [n, A] ascending, S for padding."""
    length = rows.tokens.shape[1]
    inside = at.clamp(max=length - 1)
    live = at < length
    last = torch.where(live, rows.last.gather(1, inside), -1)
    slots = at.unsqueeze(-1) + torch.arange(1, block, device=at.device)
    labels = rows.tokens.gather(1, slots.clamp(max=length - 1).flatten(1)).view(slots.shape)
    return Anchors(
        at,
        torch.where(live, rows.start.gather(1, inside), length),
        rows.tokens.gather(1, inside),
        labels,
        slots <= last.unsqueeze(-1),
    )
