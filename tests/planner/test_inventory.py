"""Models that are known by name, and models read from files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from draftwood.errors import DraftMismatchError, FormatError, UsageError
from draftwood.planner import inventory
from tests.conftest import VENDORED

TARGET = inventory.known_target("qwen3.6-27b")


def test_the_27b_is_the_popular_file() -> None:
    """SPEC-qwen35 1.1 and 3.5: tensors, type counts, bytes and parameters."""
    assert len(TARGET.tensors) == 851
    assert inventory.stored_bytes(TARGET.tensors) == 16_729_819_136
    assert inventory.weights(TARGET.tensors) == 26_895_998_464
    types = Counter(info.block_type.name for info in TARGET.tensors)
    assert types == {"F32": 353, "Q8_0": 96, "Q4_K": 263, "Q5_K": 96, "Q6_K": 43}
    assert len({info.name for info in TARGET.tensors}) == 851


def test_the_27b_has_its_shape() -> None:
    spec = TARGET.spec
    assert [i for i in range(spec.layers) if spec.attention[i]] == list(range(3, 64, 4))
    assert spec.delta is not None and (spec.delta.channels, spec.delta.value_width) == (10240, 6144)
    assert spec.query_width == 12288
    shapes = {info.name: info.shape for info in TARGET.tensors}
    assert shapes["blk.3.attn_q.weight"] == (spec.query_width, spec.hidden)
    assert shapes["blk.0.attn_qkv.weight"] == (spec.delta.channels, spec.hidden)


def test_its_drafts_have_their_published_sizes() -> None:
    """SPEC-dflash 1.2: 58 tensors, 1.73 B parameters, 1.84 and 0.98 GB."""
    q8_0, q4_k_m = inventory.known_drafts(TARGET)
    assert (q8_0.name, q4_k_m.name) == ("q8_0", "q4_k_m")
    for draft in (q8_0, q4_k_m):
        assert len(draft.tensors) == 58
        assert inventory.weights(draft.tensors) == pytest.approx(1.73e9, rel=1e-3)
        assert draft.spec.windows == (2048, 2048, 2048, 2048, None)
    assert inventory.stored_bytes(q8_0.tensors) == pytest.approx(1.84e9, rel=1e-3)
    assert inventory.stored_bytes(q4_k_m.tensors) == pytest.approx(0.975e9, rel=1e-2)
    assert q4_k_m.coarse and not q8_0.coarse


def test_a_file_is_read_without_its_data() -> None:
    target = inventory.target_of_file(VENDORED / "models" / "q35-c.Q4_K_M.gguf")
    assert target.key is None and target.spec.architecture == "qwen35"
    assert target.head.shape[0] == target.spec.vocab
    assert all(int(info.name.split(".")[1]) < target.spec.layers for info in target.matrices if info.name[:3] == "blk")
    assert inventory.known_drafts(target) == []


def test_a_draft_is_checked_against_its_target() -> None:
    target = inventory.target_of_file(VENDORED / "models" / "q35-c.Q4_K_M.gguf")
    with pytest.raises(DraftMismatchError, match="use the draft made for it"):
        inventory.draft_of_file(VENDORED / "draft" / "d1-a.Q8_0.dflash.gguf", target)


def test_unknown_drafts_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match="the known ones are q8_0, q4_k_m"):
        inventory.named_draft("q5_k", TARGET)
    with pytest.raises(UsageError, match="give a file, or none"):
        inventory.named_draft("q8_0", inventory.target_of_file(VENDORED / "models" / "l-b.Q4_1.gguf"))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no")
    with pytest.raises(FormatError):
        inventory.target_of_file(tmp_path / "text.gguf")
