"""The DFlash drafter: what it proposes from a block, and when it reads the features it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from draftwood.cache.registry import kv_pair
from draftwood.decode.drafters.base import DrafterRequest
from draftwood.decode.drafters.dflash import DFlashDrafter, block_rows, open_drafter
from draftwood.decode.tree import ROOT_ONLY, TreeShape
from draftwood.errors import UsageError
from draftwood.formats.gguf import GGUFFile
from draftwood.models.draft_spec import read_spec
from draftwood.models.draft_tensors import DraftSource, open_source
from tests.conftest import VENDORED
from tests.models.test_dflash import VENDORED_DRAFT, edited, target_on

DRAFT = VENDORED / "draft" / VENDORED_DRAFT
CHAIN = TreeShape("chain", 15)


@pytest.fixture(scope="module")
def arrays() -> dict[str, npt.NDArray[Any]]:
    with np.load(VENDORED / "draft" / "d1-a.npz") as stored:
        return dict(stored)


def opened(device: str, source: DraftSource | None = None, **options: Any) -> DFlashDrafter:
    request = DrafterRequest(
        target_on(device), source or open_source(DRAFT), dtype="float32", max_context=400, **options
    )
    return open_drafter(request)


def observe(drafter: DFlashDrafter, features: npt.NDArray[Any]) -> None:
    tokens = torch.zeros(len(features), dtype=torch.long, device=drafter.model.device)
    drafter.observe(tokens, torch.from_numpy(features).to(drafter.model.device))


def token(value: Any, device: str) -> Tensor:
    return torch.tensor(int(value), device=device)


def test_a_chain_is_the_reference_s_draft(arrays: dict[str, npt.NDArray[Any]], device: str) -> None:
    drafter = opened(device)
    assert drafter.wants == (1, 3, 5) and drafter.block_size == 16 and drafter.max_depth == 15
    for length, anchor in zip(arrays["T"].tolist(), arrays["anchor"].tolist(), strict=True):
        drafter.start(torch.zeros(length, dtype=torch.long, device=device))
        observe(drafter, arrays["features"][:length])
        expected = [anchor, *arrays[f"q8_argmax_{length}"][1:].tolist()]
        tree = drafter.propose(token(anchor, device), CHAIN).to_host()
        assert tree.tokens == expected and tree.parents == list(range(-1, 15))
        # The block is not narrowed with the budget: its rows see each other.
        assert drafter.propose(token(anchor, device), TreeShape("chain", 4)).to_host().tokens == expected[:5]


def test_a_tree_holds_the_likeliest_continuations(arrays: dict[str, npt.NDArray[Any]], device: str) -> None:
    drafter = opened(device)
    observe(drafter, arrays["features"][:40])
    logits = torch.from_numpy(arrays["q8_logits_40"][1:]).double()
    for temperature in (1.0, 2.5):
        scores = (logits / temperature).log_softmax(-1)
        shape = TreeShape("best_first", 30, candidates=8, temperature=temperature, chain_seed="none")
        tree = drafter.propose(token(arrays["anchor"][2], device), shape).to_host()
        paths: list[tuple[int, ...]] = [()]
        for node in range(1, len(tree.tokens)):
            paths.append((*paths[tree.parents[node]], tree.tokens[node]))
        total = {path: float(sum(scores[d, t] for d, t in enumerate(path))) for path in paths}
        best = scores.topk(8)
        beyond = [
            total[path] + float(best.values[len(path), rank])
            for path in paths
            for rank in range(8)
            if (*path, int(best.indices[len(path), rank])) not in total
        ]
        assert len(paths) == len(total) == 31
        assert min(total.values()) >= max(beyond) - 1e-4


def test_a_cold_tree_is_a_chain_and_not_an_error(arrays: dict[str, npt.NDArray[Any]], device: str) -> None:
    drafter = opened(device)
    observe(drafter, arrays["features"][:40])
    tree = drafter.propose(token(arrays["anchor"][2], device), TreeShape("best_first", 15, temperature=1e-9)).to_host()
    assert tree.tokens[1:8] == arrays["q8_argmax_40"][1:8].tolist()


def test_features_in_pieces_are_read_together(
    arrays: dict[str, npt.NDArray[Any]], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = opened(device)
    reads: list[int] = []
    project = drafter.model.project
    monkeypatch.setattr(
        drafter.model,
        "project",
        lambda features, context: (reads.append(len(features)), project(features, context)),
    )
    for piece in np.split(arrays["features"], (30, 31, 60)):
        observe(drafter, piece)
    assert reads == [300]
    observe(drafter, arrays["features"][:10])  # still waits when the next sequence starts
    drafter.start(torch.zeros(1, dtype=torch.long, device=device))
    for piece in np.split(arrays["features"][:40], (1, 5, 20)):
        observe(drafter, piece)
    assert reads == [300] and drafter.context.length == 0
    tree = drafter.propose(token(arrays["anchor"][2], device), CHAIN).to_host()
    assert reads == [300, 40] and drafter.context.length == 40
    assert tree.tokens[1:] == arrays["q8_argmax_40"][1:].tolist()
    assert drafter.propose(token(arrays["anchor"][2], device), CHAIN).to_host() == tree


def test_plain_rounds_cost_no_block(arrays: dict[str, npt.NDArray[Any]], device: str, monkeypatch: Any) -> None:
    drafter = opened(device)
    observe(drafter, arrays["features"][:5])
    monkeypatch.setattr(drafter.model, "block", None)
    assert drafter.propose(token(9, device), ROOT_ONLY).to_host().tokens == [9]


def test_a_causal_block_is_only_as_long_as_the_budget_asks(
    arrays: dict[str, npt.NDArray[Any]], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = opened(device, causal="all")
    observe(drafter, arrays["features"][:40])
    whole = drafter.propose(token(3, device), CHAIN).to_host().tokens
    rows: list[int] = []
    block = drafter.model.block
    monkeypatch.setattr(
        drafter.model, "block", lambda pending, n, context: (rows.append(n), block(pending, n, context))[1]
    )
    assert drafter.propose(token(3, device), TreeShape("chain", 4)).to_host().tokens == whole[:5]
    assert rows == [5]
    for kind in ("chain", "best_first"):
        tree = drafter.propose(token(3, device), TreeShape(kind, 9, depth=2)).to_host()
        assert max(tree.depth) == 2 and tree.tokens[1] == whole[1]
    assert rows == [5, 3, 3]


def test_only_tokens_of_the_shortlist_are_proposed(arrays: dict[str, npt.NDArray[Any]], device: str) -> None:
    assert opened(device).facts()["proposes from"] == "512 of 512 tokens"
    ids = list(range(1, 512, 2))
    drafter = opened(device, edited(cast(GGUFFile, open_source(DRAFT)), dflash__shortlist=ids))
    observe(drafter, arrays["features"][:40])
    best = torch.from_numpy(arrays["q8_logits_40"][1:, 1::2]).argmax(-1) * 2 + 1
    assert drafter.propose(token(arrays["anchor"][2], device), CHAIN).to_host().tokens[1:] == best.tolist()
    tree = drafter.propose(token(arrays["anchor"][2], device), TreeShape("best_first", 40)).to_host()
    assert set(tree.tokens[1:]) <= set(ids) and len(tree.tokens) == 41
    assert drafter.facts()["proposes from"] == "256 of 512 tokens"


def test_block_lengths(device: str) -> None:
    spec = read_spec(open_source(DRAFT))
    with pytest.raises(UsageError, match=r"A draft block of 8 rows .* 16 rows alone"):
        block_rows(spec, 8)
    assert block_rows(spec, None) == block_rows(spec, 16) == 16
    causal = read_spec(open_source(DRAFT), causal="all")
    assert block_rows(causal, 8) == 8
    for wrong in (1, 17):
        with pytest.raises(UsageError, match="2 to 16 rows"):
            block_rows(causal, wrong)
    source = open_source(DRAFT)
    source.metadata = {**source.metadata, "dflash.block_sizes": [4, 8, 16]}  # type: ignore[union-attr]
    listed = read_spec(source)
    assert block_rows(listed, 8) == 8
    with pytest.raises(UsageError, match="4, 8, 16 rows"):
        block_rows(listed, 5)
    drafter = opened(device, causal="all", block=6)
    assert drafter.block_size == 6 and drafter.max_depth == 5


def test_a_draft_needs_a_file(device: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a file"):
        open_drafter(DrafterRequest(target_on(device)))


def test_bytes_are_counted(device: str) -> None:
    drafter = opened(device, kv=kv_pair("f16"))
    # Three layers of K and V, two heads of 64, 448 rows of context and room for two passes of 64.
    assert drafter.context.nbytes == 3 * 2 * 2 * 64 * (448 + 128) * 2
    assert drafter.nbytes > drafter.context.nbytes + 4 * 128 * 384
