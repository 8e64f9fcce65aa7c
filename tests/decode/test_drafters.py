"""The contract of a drafter, run for every registered one and every tree shape."""

from __future__ import annotations

import pytest
import torch

from draftwood.decode.drafters.base import Drafter, DrafterRequest
from draftwood.decode.drafters.registry import DRAFTERS, drafter_of_architecture, load, named_drafter
from draftwood.decode.tree import ROOT_ONLY, TreeShape
from draftwood.models.draft_tensors import open_source
from tests.conftest import VENDORED
from tests.models.test_dflash import VENDORED_DRAFT, target_on

FILES = {"dflash": VENDORED / "draft" / VENDORED_DRAFT}
"""A small draft for every drafter that needs a file."""

SHAPES = [ROOT_ONLY, *(TreeShape(kind, budget) for kind in ("chain", "best_first") for budget in (1, 2, 8, 22, 63))]


def opened(name: str, device: str) -> Drafter:
    source = open_source(FILES[name]) if name in FILES else None
    return load(DRAFTERS[name])(DrafterRequest(target_on(device), source, "float32", max_context=300))


@pytest.mark.parametrize("name", list(DRAFTERS))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.kind}-{shape.budget}")
def test_every_tree_is_well_formed(name: str, shape: TreeShape, device: str) -> None:
    drafter = opened(name, device)
    context = torch.tensor([1, 2, 3, 4, 5, 1, 2, 3, 9, 4, 1, 2] * 4, device=device)
    features = torch.randn(48, len(drafter.wants) * 128, device=device) if drafter.wants else None
    for _ in range(2):  # a second sequence starts from nothing
        drafter.start(context)
        drafter.observe(context[:40], None if features is None else features[:40])
        drafter.observe(context[40:], None if features is None else features[40:])
        tree = drafter.propose(torch.tensor(3, device=device), shape).to_host()
        assert tree.tokens[0] == 3
        assert tree.parents[0] == -1
        assert 1 <= len(tree.tokens) <= shape.budget + 1
        assert max(tree.depth) <= drafter.max_depth
        children: set[tuple[int, int]] = set()
        for node in range(1, len(tree.tokens)):
            parent = tree.parents[node]
            assert 0 <= parent < node
            assert tree.depth[node] == tree.depth[parent] + 1
            assert (parent, tree.tokens[node]) not in children
            children.add((parent, tree.tokens[node]))
        if shape is ROOT_ONLY:
            assert len(tree.tokens) == 1
        if not shape.branching:
            assert tree.parents == list(range(-1, len(tree.parents) - 1))


@pytest.mark.parametrize("name", list(DRAFTERS))
def test_the_same_context_gives_the_same_tree(name: str, device: str) -> None:
    trees = []
    for pieces in ((48,), (1, 7, 40)):
        drafter = opened(name, device)
        context = torch.arange(48, device=device) % 12
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(48, len(drafter.wants) * 128, generator=generator).to(device)
        drafter.start(context)
        first = 0
        for count in pieces:
            rows = slice(first, first + count)
            drafter.observe(context[rows], features[rows] if drafter.wants else None)
            first += count
        trees.append(drafter.propose(torch.tensor(0, device=device), TreeShape("best_first", 15)).to_host())
    assert trees[0] == trees[1]


@pytest.mark.parametrize("name", list(DRAFTERS))
def test_a_mark_is_come_back_to(name: str, device: str) -> None:
    """As often as one likes, from far more rows than a window keeps in place."""
    drafter = opened(name, device)
    context = torch.arange(280, device=device) * 7 % 12
    features = torch.randn(280, len(drafter.wants) * 128, device=device)
    pending, trees = context[100], []

    def observe(rows: slice) -> None:
        drafter.observe(context[rows], features[rows] if drafter.wants else None)

    drafter.start(context)
    observe(slice(100))
    mark = drafter.mark()
    for _ in range(3):
        trees.append(drafter.propose(pending, TreeShape("best_first", 15)).to_host())
        observe(slice(100, 120))
        drafter.propose(context[120], TreeShape("chain", 7))
        observe(slice(120, 280))
        drafter.propose(context[0], TreeShape("chain", 7))
        drafter.rewind(mark)
    assert trees == trees[:1] * 3


def test_names_and_files() -> None:
    for name, spec in DRAFTERS.items():
        assert (named_drafter(name) is spec) == (spec.accepts is None)
        assert (name in FILES) == (spec.accepts is not None)
    assert drafter_of_architecture(FILES["dflash"], "dflash-draft") is DRAFTERS["dflash"]
