"""Packed rows, and the blocks drawn in them."""

from __future__ import annotations

import numpy as np
import torch

from draftwood.training.packing import Rows, draw_anchors, pack, place_anchors, stretch_ends
from tests.training.small import document


def wide(rows: Rows) -> Rows:
    return rows.take(torch.arange(len(rows)), "cpu")


def test_stretch_ends() -> None:
    inside = np.array([0, 1, 1, 0, 1, 0, 1], bool)
    assert stretch_ends(inside, 10).tolist() == [-1, 12, 12, -1, 14, -1, 16]


def test_every_token_is_packed_once_with_its_document() -> None:
    documents = [document(length, (length // 2, length), seed) for seed, length in enumerate((50, 70, 30, 128, 90, 5))]
    rows = wide(pack(documents, 128))
    found = []
    for row in range(len(rows)):
        starts = rows.start[row]
        for start in starts.unique().tolist():
            members = (starts == start).nonzero().flatten()
            if len(members) > 1:
                found.append(rows.tokens[row, members].tolist())
                assert rows.positions[row, members].tolist() == list(range(len(members)))
    assert sorted(found) == sorted(tokens.tolist() for tokens, _ in documents)
    assert len(rows) <= 4, "373 tokens need three rows of 128; one more is tolerable"


def test_a_long_document_is_cut() -> None:
    rows = wide(pack([document(300, (100, 300), 0)], 128))
    assert len(rows) == 1 and rows.last[0, 100:].tolist() == [127] * 28


def test_anchors_are_candidates_sorted_and_unique() -> None:
    rows = wide(pack([document(60, (20, 50), 0), document(40, (10, 12), 1)], 128))
    assert int(rows.candidates.sum()) == 29 + 1
    anchors = draw_anchors(rows, 20, 8, torch.Generator().manual_seed(0))
    assert anchors.at.shape == (1, 20)
    drawn = anchors.at[0].tolist()
    assert drawn == sorted(set(drawn)) and bool(rows.candidates[0, anchors.at[0]].all())
    everything = draw_anchors(rows, 40, 8, torch.Generator().manual_seed(0))
    assert (everything.at[0] == 128).sum() == 10 and not everything.valid[0, everything.at[0] == 128].any()


def test_labels_stand_at_their_own_positions_and_end_with_the_answer() -> None:
    tokens, roles = document(40, (10, 20), 3)
    rows = wide(pack([(tokens, roles)], 64))
    anchors = place_anchors(rows, torch.tensor([[12, 17, 18]]), 8)
    assert anchors.tokens[0].tolist() == tokens[[12, 17, 18]].tolist()
    assert anchors.labels[0, 0].tolist() == tokens[13:20].tolist()
    assert anchors.valid.sum(-1).tolist() == [[7, 2, 1]]
