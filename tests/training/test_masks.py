"""The dense mask by its definition, and the tiles by the dense mask."""

from __future__ import annotations

import pytest
import torch

from draftwood.training.masks import DENSE, TILED, BlockRule, dense_blocks
from draftwood.training.packing import draw_anchors, pack
from tests.training.small import document

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

RULES = [BlockRule(16), BlockRule(16, causal=False), BlockRule(16, window=40), BlockRule(16, leak=True)]


@pytest.mark.parametrize("rule", RULES)
def test_dense_mask_by_the_words_of_the_rule(rule: BlockRule) -> None:
    at, start, length = torch.tensor([[3, 70, 96]]), torch.tensor([[0, 50, 96]]), 96
    mask = dense_blocks(at, start, length, rule)[0, 0]
    assert mask.shape == (48, 96 + 48)
    for query in range(48):
        block, slot = divmod(query, 16)
        anchor, first = int(at[0, block]), int(start[0, block])
        for key in range(96):
            allowed = first <= key < anchor + rule.leak
            near = rule.window is None or anchor + slot - key < rule.window
            assert bool(mask[query, key]) == (allowed and near)
        for key in range(48):
            mine = key // 16 == block and (not rule.causal or key % 16 <= slot)
            assert bool(mask[query, 96 + key]) == mine


@pytest.mark.parametrize("rule", RULES)
def test_tiles_equal_the_dense_mask(rule: BlockRule) -> None:
    documents = [document(length, (length // 3, length), length) for length in (130, 100, 200, 60)]
    packed = pack(documents, 256)
    rows = packed.take(torch.arange(len(packed)), "cpu")
    anchors = draw_anchors(rows, 32, 16, torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    n, queries = len(rows), 32 * 16
    q, k, v = (torch.randn(n, h, s, 16) for h, s in ((2, queries), (1, 256 + queries), (1, 256 + queries)))
    results = [form.attend(q, k, v, form.blocks(anchors.at, anchors.start, 256, rule)) for form in (DENSE, TILED)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_document_tiles_equal_the_dense_mask() -> None:
    packed = pack([document(length, (0, length), length) for length in (130, 100, 200, 60)], 256)
    rows = packed.take(torch.arange(len(packed)), "cpu")
    torch.manual_seed(0)
    q, k, v = (torch.randn(len(rows), h, 256, 16) for h in (2, 1, 1))
    results = [form.attend(q, k, v, form.documents(rows.start)) for form in (DENSE, TILED)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
