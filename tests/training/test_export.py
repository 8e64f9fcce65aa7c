"""A draft that was written is the draft that the engine reads: every bit, every key, and no half file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch

from draftwood.cache.registry import kv_pair
from draftwood.formats.gguf import GGUFFile
from draftwood.kernels.dequant import dequantise
from draftwood.layers.weights import Weights
from draftwood.models import dflash
from draftwood.models.draft_spec import read_spec
from draftwood.models.draft_tensors import DraftTensors
from draftwood.training.draft_net import DraftShape
from draftwood.training.export import DraftFacts, write_gguf
from tests.conftest import VENDORED
from tests.layers.test_weights import MemorySource
from tests.models.test_dflash import TARGET_SPEC, VENDORED_DRAFT, target_on

FACTS = DraftFacts(
    name="d1-a.Q8_0.dflash",
    shape=DraftShape(
        layers=3,
        hidden=128,
        ffn=128,
        heads=4,
        kv_heads=2,
        head_dim=64,
        eps=1e-6,
        rope_base=1e7,
        block=16,
        mask_token=510,
        taps=(1, 3, 5),
        causal=False,
        windows=(None, None, None),
    ),
    context_length=4096,
)
"""The facts of the vendored draft."""


@pytest.fixture
def source() -> GGUFFile:
    return GGUFFile.open(VENDORED / "draft" / VENDORED_DRAFT)


@pytest.fixture
def arrays(source: GGUFFile) -> dict[str, npt.NDArray[np.float32]]:
    return {
        name: dequantise(torch.from_numpy(source.raw(name)), info.block_type).reshape(info.shape).numpy()
        for name, info in source.tensors.items()
    }


def test_a_converter_s_file_written_again_is_the_same(
    source: GGUFFile, arrays: dict[str, npt.NDArray[np.float32]], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "again.gguf", arrays, FACTS, source)
    again = GGUFFile.open(tmp_path / "again.gguf")
    assert dict(again.metadata) == dict(source.metadata) | {"dflash.attention.causal": False}
    assert dict(again.tensors) == dict(source.tensors)
    for name in source.tensors:
        assert np.array_equal(again.raw(name), source.raw(name)), name
    stored, expected = (
        {key: field.types for key, field in gguf.GGUFReader(file.path).fields.items()} for file in (again, source)
    )
    assert {key: types for key, types in stored.items() if key in expected} == expected


@pytest.mark.parametrize("causal", [True, False])
def test_the_engine_drafts_from_it_as_from_the_arrays(causal: bool, source: GGUFFile, tmp_path: Path) -> None:
    facts = replace(FACTS, shape=replace(FACTS.shape, causal=causal, windows=(None, 24, 24), taps=(0, 4, 7)))
    draw = np.random.default_rng(3)
    random = {
        name: draw.standard_normal(shape).astype(np.float32) * shape[-1] ** -0.5
        for name, shape in facts.shapes().items()
    }
    write_gguf(tmp_path / "draft.gguf", random, facts, source, matrix_type="F32")
    written = GGUFFile.open(tmp_path / "draft.gguf")
    spec = read_spec(written)
    assert (spec.taps, spec.windows, spec.causal) == ((0, 4, 7), (None, 24, 24), (causal,) * 3)
    assert (spec.mask_token, spec.rope_base, spec.block_size, spec.vocab) == (510, 1e7, 16, TARGET_SPEC.vocab)
    features = torch.randn(50, 3 * 128, generator=torch.Generator().manual_seed(1))
    blocks = []
    for tensors in (DraftTensors(written), MemorySource(random)):
        model = dflash.build(spec, Weights(tensors, "cpu", "float32"), target_on("cpu"))
        context = model.new_context(kv_pair("f32"), 64)
        model.project(features, context)
        blocks.append(model.logits(model.block(torch.tensor(5), 16, context)))
    assert torch.equal(*blocks)


def test_a_shortlist_is_a_key_of_its_own(
    source: GGUFFile, arrays: dict[str, npt.NDArray[np.float32]], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "short.gguf", arrays, replace(FACTS, shortlist=(0, 3, 511)), source)
    written = GGUFFile.open(tmp_path / "short.gguf")
    assert written.get("dflash.shortlist") == [0, 3, 511] and set(written.tensors) == set(source.tensors)


def test_what_does_not_fit_is_not_written(
    source: GGUFFile, arrays: dict[str, npt.NDArray[np.float32]], tmp_path: Path
) -> None:
    old = tmp_path / "draft.gguf"
    old.write_bytes(b"the draft before")
    missing = {name: array for name, array in arrays.items() if name != "blk.1.attn_k.weight"}
    with pytest.raises(ValueError, match=r"blk\.1\.attn_k\.weight"):
        write_gguf(old, missing, FACTS, source)
    with pytest.raises(ValueError, match=r"'extra\.weight'"):
        write_gguf(old, {**arrays, "extra.weight": arrays["fc.weight"]}, FACTS, source)
    with pytest.raises(ValueError, match=r"fc\.weight.*\(128, 384\)"):
        write_gguf(old, {**arrays, "fc.weight": arrays["fc.weight"].T}, FACTS, source)
    with pytest.raises(KeyError):  # in the middle of writing
        write_gguf(old, arrays, FACTS, source, matrix_type="Q3_X")
    assert [path.name for path in tmp_path.iterdir()] == ["draft.gguf"]
    assert old.read_bytes() == b"the draft before"
