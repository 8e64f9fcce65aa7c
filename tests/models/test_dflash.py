"""DFlash drafts against the official reference (oracle/draft), in every dialect, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from draftwood.batch import GRANULE
from draftwood.cache.kv import poison
from draftwood.cache.registry import kv_pair
from draftwood.cache.states import draft_state
from draftwood.cache.window import WindowedKVState
from draftwood.errors import (
    DraftMismatchError,
    DraftwoodError,
    FormatError,
    UnsupportedModelError,
    UsageError,
)
from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.formats.gguf import GGUFFile
from draftwood.formats.safetensors import SafetensorsDirectory
from draftwood.formats.source import TensorInfo, UnsupportedTensorInfo
from draftwood.layers.weights import StoredMatrix, Weights
from draftwood.models import dflash
from draftwood.models.base import Model
from draftwood.models.dflash import DraftContext, DraftModel
from draftwood.models.draft_spec import fit, read_spec
from draftwood.models.draft_tensors import DraftSource, DraftTensors, open_source
from draftwood.models.spec import ModelSpec
from tests.conftest import VENDORED, oracle_path

TOLERANCE = 1e-4
HALF_TOLERANCE = 3e-3
"""Operands of a GPU's matrices are halves, each off by 2**-11 at most; mistakes cost 2e-2 and more (oracle README)."""

VENDORED_DRAFT = "d1-a.Q8_0.dflash.gguf"
TARGET_SPEC = ModelSpec("qwen3", 8, 128, 256, 512, 4, 2, 32, 1e-6, 32, 1e7, "halves", 4096, attention=(True,) * 8)


class StandInTarget:
    """The token table and the head of the goldens' target, all that a draft borrows of it."""

    def __init__(self, device: str) -> None:
        stored = np.load(VENDORED / "draft" / "t-a.npz")
        self.spec, self.device = TARGET_SPEC, device
        self.table, self.matrix = (torch.from_numpy(stored[key]).to(device) for key in ("embed", "head"))
        head = torch.from_numpy(stored["head"].view(np.uint8))
        self.stored_head = StoredMatrix(head.to, BLOCK_TYPES["F32"], 128, None)

    def embedding(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.matrix.T


def target_on(device: str, **changes: Any) -> Model:
    target = StandInTarget(device)
    target.__dict__.update(changes)
    return cast(Model, target)


class Golden(NamedTuple):
    """A draft file or directory of the oracle, its config (None: its own), its arrays and their prefix."""

    path: str
    config: str | None
    prefix: str

    def source(self, scratch: Path) -> DraftSource:
        if self.path == VENDORED_DRAFT:
            return open_source(VENDORED / "draft" / self.path)
        root = oracle_path()
        if root is None:
            pytest.skip("no oracle")
        if self.config is None:
            return open_source(root / "draft" / self.path)
        directory = scratch / self.path
        shutil.copytree(root / "draft" / self.path, directory)
        shutil.copy(directory / self.config, directory / "config.json")
        return open_source(directory)

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        root = VENDORED if self.path.startswith("d1-a") else oracle_path() or VENDORED
        with np.load(root / "draft" / f"{self.path[:4]}.npz") as stored:
            return dict(stored)


GOLDENS = (
    Golden(VENDORED_DRAFT, None, "q8_"),
    Golden("d1-a", None, ""),
    Golden("d1-a.F32.dflash.gguf", None, ""),
    Golden("d1-a.Q8_0.dflash-draft.gguf", None, "q8_"),
    Golden("d1-b", None, ""),
    Golden("d1-b", "config.is_causal_false.json", "causal_false_"),
    Golden("d1-b", "config.is_causal_true.json", "causal_true_"),
    Golden("d1-b.F32.dflash.gguf", None, ""),
    Golden("d1-b.Q8_0.dflash.gguf", None, "q8_"),
    Golden("d1-b.Q8_0.dflash-draft.gguf", None, "q8_"),
    Golden("d1-b-causal-false.Q8_0.dflash.gguf", None, "q8_causal_false_"),
)
PLAIN = (Golden(VENDORED_DRAFT, None, "q8_"), GOLDENS[1], GOLDENS[4])


def golden_name(golden: Golden) -> str:
    return f"{golden.path}-{golden.prefix}"


def build(source: DraftSource, device: str, dtype: str = "float32", causal: str = "file") -> DraftModel:
    return dflash.build(read_spec(source, causal), Weights(DraftTensors(source), device, dtype), target_on(device))


def fresh(model: DraftModel, kv: str = "f32") -> DraftContext:
    """A context whose every buffer is poisoned, so that a row read before it was written shows."""
    context = model.new_context(kv_pair(kv), 320)
    for state in context.states:
        poison(state)
    return context


def difference(found: Tensor, expected: npt.NDArray[Any]) -> float:
    """Relative L2."""
    array = found.cpu().numpy()
    assert array.shape == expected.shape
    return float(np.linalg.norm(array - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("golden", GOLDENS, ids=golden_name)
def test_a_block_is_the_reference_s(golden: Golden, tmp_path: Path, device: str) -> None:
    model, arrays = build(golden.source(tmp_path), device), golden.arrays
    features = torch.from_numpy(arrays["features"]).to(device)
    context = fresh(model)
    for length, anchor in zip(arrays["T"].tolist(), arrays["anchor"].tolist(), strict=True):
        context.truncate(0)
        model.project(features[:length], context)
        hidden = model.block(torch.tensor(anchor, device=device), model.spec.block_size, context)
        logits = model.logits(hidden)
        assert difference(hidden, arrays[f"{golden.prefix}hidden_{length}"]) < TOLERANCE
        assert difference(logits, arrays[f"{golden.prefix}logits_{length}"]) < TOLERANCE
        assert logits.argmax(-1).tolist()[1:] == arrays[f"{golden.prefix}argmax_{length}"].astype(int).tolist()[1:]
        assert context.length == length


@pytest.mark.parametrize("golden", (GOLDENS[1], GOLDENS[4]), ids=golden_name)
def test_a_growing_context_is_the_reference_s(golden: Golden, tmp_path: Path, device: str) -> None:
    model, arrays = build(golden.source(tmp_path), device), golden.arrays
    context, start = fresh(model), 0
    for i, (count, anchor) in enumerate(zip(arrays["inc_chunks"].tolist(), arrays["inc_anchor"].tolist(), strict=True)):
        model.project(torch.from_numpy(arrays["features"][start : start + count]).to(device), context)
        start += count
        hidden = model.block(torch.tensor(anchor, device=device), model.spec.block_size, context)
        assert difference(hidden, arrays[f"inc_hidden_{i}"]) < TOLERANCE


def check_rounds_form(golden: Golden, scratch: Path, device: str, lengths: Sequence[int]) -> list[float]:
    """The block as captured rounds make it, by a GPU's kernels, its context kept by up to 16 rows a round."""
    model, arrays, found = build(golden.source(scratch), device, "auto"), golden.arrays, []
    features = torch.from_numpy(arrays["features"]).to(device)
    for length, anchor in zip(arrays["T"].tolist(), arrays["anchor"].tolist(), strict=True):
        if length in lengths:
            context = model.device_context(kv_pair("f32"), fresh(model))
            assert context is not None
            for rows in features[:length].split(16):
                context.make_room(16 + model.spec.block_size)
                model.project_kept(rows, torch.tensor(len(rows), device=device), context)
                context.kept(len(rows))
            context.make_room(model.spec.block_size)
            hidden = model.block_on_device(torch.tensor(anchor, device=device), model.spec.block_size, context)
            found.append(difference(hidden, arrays[f"{golden.prefix}hidden_{length}"]))
            assert found[-1] < HALF_TOLERANCE
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("golden", GOLDENS, ids=golden_name)
def test_a_block_by_kernels_is_the_reference_s(golden: Golden, tmp_path: Path, gpu: str) -> None:
    assert len(check_rounds_form(golden, tmp_path, gpu, (1, 5, 40, 300))) == 4


@pytest.mark.parametrize("golden", (GOLDENS[1], GOLDENS[4]), ids=golden_name)
def test_every_stage_is_the_reference_s(golden: Golden, tmp_path: Path, device: str) -> None:
    model, arrays = build(golden.source(tmp_path), device), golden.arrays
    features = torch.from_numpy(arrays["features"][:40]).to(device)
    assert difference(model.context_rows(features), arrays["trace_g"]) < TOLERANCE
    context = fresh(model)
    model.project(features, context)
    for i in (0, len(model.layers) - 1):
        state = context.states[i]
        assert difference(state.keys.read(0, 40).transpose(0, 1), arrays[f"trace_kc_{i}"]) < TOLERANCE
        assert difference(state.values.read(0, 40).transpose(0, 1), arrays[f"trace_vc_{i}"]) < TOLERANCE
    outputs = []
    whole = model.layers
    anchor = torch.tensor(int(arrays["anchor"][2]), device=device)
    for depth in range(1, len(whole) + 1):
        model.layers = whole[:depth]
        model.output_norm = torch.ones_like(model.output_norm)
        outputs.append(model.block(anchor, model.spec.block_size, DraftContext(context.states[:depth])))
    for i, normed in enumerate(outputs):
        expected = arrays[f"trace_x_{i}"]
        expected = expected / np.sqrt((expected**2).mean(-1, keepdims=True) + model.spec.eps)
        assert difference(normed, expected) < TOLERANCE


@pytest.mark.parametrize("golden", PLAIN, ids=golden_name)
def test_a_shorter_block_of_causal_layers_is_the_beginning_of_a_longer_one(
    golden: Golden, tmp_path: Path, device: str
) -> None:
    model, arrays = build(golden.source(tmp_path), device, causal="all"), golden.arrays
    context, anchor = fresh(model), torch.tensor(7, device=device)
    model.project(torch.from_numpy(arrays["features"][:45]).to(device), context)
    whole = model.block(anchor, model.spec.block_size, context)
    for rows in range(1, model.spec.block_size):
        torch.testing.assert_close(model.block(anchor, rows, context), whole[:rows], rtol=0, atol=1e-5)


def test_a_window_shorter_than_the_block_hides_rows_on_both_sides(device: str) -> None:
    from draftwood.kernels.attention.block import block_mask, first_visible

    rows, committed, window = 6, 5, 3
    start = first_visible(committed, window)
    for causal in (False, True):
        mask = block_mask(rows, committed, window, causal, device)
        assert mask is not None
        for j in range(rows):
            for key in range(start, committed + rows):
                distance = committed + j - key
                visible = distance < window and distance > (-1 if causal else -window)
                assert (mask[j, key - start] == 0) == visible
        # Nothing before the first key that is read would have been visible.
        assert committed - (start - 1) >= window
    assert block_mask(rows, committed, None, False, device) is None
    assert block_mask(rows, committed, 11, False, device) is None


@pytest.mark.parametrize(
    ("dtype", "kv", "limit"),
    [
        ("float32", "f16", 5e-3),
        ("float32", "bf16", 3e-2),
        ("float32", "q8_0/f16", 3e-2),
        ("auto", "f32", 6e-2),
    ],
)
def test_cheaper_arithmetic_stays_close(vendored: Path, device: str, dtype: str, kv: str, limit: float) -> None:
    model = build(open_source(vendored / "draft" / VENDORED_DRAFT), device, dtype)
    arrays = GOLDENS[0].arrays
    context = fresh(model, kv)
    for part in np.split(arrays["features"], (70, 75)):
        model.project(torch.from_numpy(part).to(device), context)
    anchor = torch.tensor(int(arrays["anchor"][3]), device=device)
    logits = model.logits(model.block(anchor, 16, context))
    assert 0 < difference(logits, arrays["q8_logits_300"]) < limit


def test_rows_that_are_not_numbers_harm_nothing_else(vendored: Path, device: str) -> None:
    model = build(open_source(vendored / "draft" / VENDORED_DRAFT), device)
    features = torch.from_numpy(GOLDENS[0].arrays["features"][: GRANULE + 2]).to(device)
    features[3, 5], features[4, 6] = torch.nan, torch.inf
    context = fresh(model)
    model.project(features, context)
    assert model.block(torch.tensor(1, device=device), 16, context).isfinite().all()


# -------------------------------------------------------------------------------- what a file says, in memory


def edited(source: GGUFFile, tensors: dict[str, TensorInfo | None] | None = None, **values: Any) -> GGUFFile:
    """The file with other metadata (None: left out; `__` stands for a dot) and other tensor facts."""
    changed = copy.copy(source)
    metadata = dict(source.metadata) | {key.replace("__", "."): value for key, value in values.items()}
    changed.metadata = {key: value for key, value in metadata.items() if value is not None}
    facts: dict[str, TensorInfo | None] = {**source.tensors, **(tensors or {})}
    changed.tensors = {name: info for name, info in facts.items() if info is not None}
    return changed


def of_architecture(source: GGUFFile, name: str, **values: Any) -> GGUFFile:
    """The file as an older converter would have named its keys."""
    changed = edited(source, **values)
    changed.metadata = {
        key.replace("dflash.", f"{name}.", 1) if key.startswith("dflash.") else key: value
        for key, value in changed.metadata.items()
    } | {"general.architecture": name}
    return changed


def facts(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, shape, BLOCK_TYPES["F32"], 4 * int(np.prod(shape)))


CONFIG: dict[str, Any] = {
    "architectures": ["DFlashDraftModel"],
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 128,
    "rope_theta": 1e7,
    "block_size": 16,
    "num_target_layers": 8,
    "dflash_config": {"mask_token_id": 510, "target_layer_ids": [1, 3, 5]},
}


def directory(**changes: Any) -> SafetensorsDirectory:
    """A draft directory in memory; `dflash_config` is merged, None leaves a key out."""
    config = json.loads(json.dumps(CONFIG))
    config["dflash_config"] |= changes.pop("dflash_config", {})
    config |= changes
    config = {key: value for key, value in config.items() if value is not None}
    return SafetensorsDirectory(Path("draft"), config, {"fc.weight": facts("fc.weight", 128, 384)}, {})


@pytest.fixture
def source(vendored: Path) -> GGUFFile:
    return GGUFFile.open(vendored / "draft" / VENDORED_DRAFT)


def test_the_facts_of_the_vendored_draft(source: GGUFFile) -> None:
    spec = read_spec(source)
    assert (spec.layers, spec.hidden, spec.heads, spec.kv_heads, spec.head_dim) == (3, 128, 4, 2, 64)
    assert (spec.block_size, spec.mask_token, spec.taps, spec.vocab) == (16, 510, (1, 3, 5), 512)
    assert spec.windows == (None,) * 3 and spec.causal == (False,) * 3 and spec.notes == ()
    assert spec.rope_base == 1e7 and spec.block_sizes == ()


def test_directory_and_files_say_the_same(oracle: Path) -> None:
    for draft in ("d1-a", "d1-b"):
        specs = [
            read_spec(open_source(oracle / "draft" / f"{draft}{suffix}"))
            for suffix in ("", ".F32.dflash.gguf", ".Q8_0.dflash.gguf", ".Q8_0.dflash-draft.gguf")
        ]
        for spec in specs[1:]:
            for name in (
                "taps",
                "windows",
                "causal",
                "block_size",
                "mask_token",
                "rope_base",
                "ffn",
                "notes",
            ):
                assert getattr(spec, name) == getattr(specs[0], name), (spec.source, name)


EARLY_CONVERTER = {
    "dflash__target_layers": [1, 3, 5],
    "dflash__mask_token_id": 510,
    "tokenizer__ggml__mask_token_id": None,
}


@pytest.mark.parametrize(
    ("keys", "shift", "taps"),
    [
        ({}, "auto", (1, 3, 5)),
        ({}, "0", (2, 4, 6)),
        (EARLY_CONVERTER, "auto", (1, 3, 5)),
        ({"dflash__target_layers": None, "dflash__target_layer_ids": [0, 3, 5]}, "auto", (0, 3, 5)),
        ({"dflash__target_layers": None, "dflash__target_layer_ids": [2, 4, 6]}, "1", (1, 3, 5)),
    ],
)  # fmt: skip
def test_taps(source: GGUFFile, keys: dict[str, Any], shift: str, taps: tuple[int, ...]) -> None:
    assert read_spec(edited(source, **keys), tap_shift=shift).taps == taps


SLIDING = {
    "dflash__attention__sliding_window": 32,
    "dflash__attention__sliding_window_pattern": [True, True, False],
}


@pytest.mark.parametrize(
    ("keys", "option", "causal"),
    [
        ({}, "file", (True, True, False)),
        ({"dflash__attention__causal": False}, "file", (False,) * 3),
        ({"dflash__attention__causal": True}, "file", (True,) * 3),
        ({"dflash__attention__causal": True}, "none", (False,) * 3),
        ({"dflash__attention__causal": False}, "sliding", (True, True, False)),
        ({"dflash__attention__causal": False}, "all", (True,) * 3),
    ],
)
def test_causality(source: GGUFFile, keys: dict[str, Any], option: str, causal: tuple[bool, ...]) -> None:
    spec = read_spec(edited(source, **SLIDING, **keys), causal=option)
    assert spec.causal == causal
    assert spec.windows == (32, 32, None)


def test_causality_of_a_directory() -> None:
    sliding = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32}
    assert read_spec(directory(**sliding)).causal == (True, False)
    nested = read_spec(directory(**sliding, dflash_config={"causal": True}))
    assert nested.causal == (True, True)
    assert any("dflash_config.causal" in note for note in nested.notes)
    both = read_spec(directory(**sliding, is_causal=False, dflash_config={"causal": True}))
    assert both.causal == (False, False)


def test_windows(source: GGUFFile) -> None:
    every_third = {"dflash__attention__sliding_window": 8, "dflash__attention__sliding_window_pattern": 3}
    assert read_spec(edited(source, **every_third)).windows == (8, 8, None)
    unused = directory(layer_types=["sliding_attention"] * 2, sliding_window=32, use_sliding_window=False)
    spec = read_spec(unused)
    assert spec.windows == (None, None) and spec.causal == (True, True) and "use_sliding_window" in spec.notes[0]


def test_windows_as_asked(source: GGUFFile) -> None:
    """They change how far back a layer sees and not which layers are causal."""
    file = read_spec(edited(source, **SLIDING))
    for window, expected in ((16, (16, 16, None)), (0, (None,) * 3), (None, (32, 32, None))):
        spec = read_spec(edited(source, **SLIDING), window=window)
        assert spec.windows == expected and spec.causal == file.causal == (True, True, False)
        assert any("as asked" in note for note in spec.notes) == (window is not None)
    assert read_spec(source, window=2048).windows == (2048, 2048, None)
    assert read_spec(source, window=2048).causal == (False,) * 3
    for wrong in (-1, 1.5, True, "off"):
        refused(UsageError, lambda: read_spec(source, window=wrong), "window", "0 for no window")  # type: ignore[arg-type]  # noqa: B023


@pytest.mark.parametrize("kv", ["f32", "q8_0", "tq4_0/tq3_0"])
@pytest.mark.parametrize("pieces", [(1, 2, 16, 7, 1, 64, 40, 5), (100, 3, 90, 17, 60)])
def test_a_window_s_cache_gives_the_bits_of_a_whole_one(
    source: GGUFFile, kv: str, pieces: tuple[int, ...], device: str
) -> None:
    model = build(edited(source, **SLIDING), device)
    context = fresh(model, kv)
    size = model.spec.kv_heads, model.spec.head_dim, 320, device
    whole = DraftContext([draft_state(kv_pair(kv), *size[:3], None, device) for _ in model.layers])
    assert context.nbytes < whole.nbytes
    assert [isinstance(state, WindowedKVState) for state in context.states] == [True, True, False]
    features = torch.from_numpy(GOLDENS[0].arrays["features"]).to(device)
    for _ in range(2):
        start = 0
        for count in pieces:
            for each in (context, whole):
                model.project(features[start : start + count], each)
            start += count
            for rows in (16, 3):
                found, expected = (model.block(torch.tensor(7, device=device), rows, each) for each in (context, whole))
                assert torch.equal(found, expected), (start, rows)
        context.truncate(0)
        whole.truncate(0)


def test_memory_of_a_sliding_layer_does_not_grow(source: GGUFFile, device: str) -> None:
    model = build(edited(source, **SLIDING), device)
    sizes = [
        [state.nbytes for state in model.new_context(kv_pair("f16"), tokens).states] for tokens in (64, 1024, 65536)
    ]
    assert sizes[0][:2] == sizes[1][:2] == sizes[2][:2]
    assert sizes[2][2] > 50 * sizes[1][0]


def test_an_old_file_of_the_qwen36_draft_gets_the_window_it_left_out(source: GGUFFile) -> None:
    keys = {
        "dflash__block_count": 5,
        "dflash__target_layers": None,
        "dflash__target_layer_ids": [1, 16, 31, 46, 61],
    }
    fc = {"fc.weight": facts("fc.weight", 128, 640)}
    old = of_architecture(edited(source, fc, **keys), "dflash-draft")
    spec = read_spec(old)
    assert spec.windows == (2048,) * 4 + (None,) and spec.causal == (True,) * 4 + (False,)
    assert any("2048" in note for note in spec.notes)
    assert read_spec(edited(source, fc, **keys)).windows == (None,) * 5


def test_the_rotary_base_of_an_old_converter_is_the_target_s(source: GGUFFile) -> None:
    wrong = {"dflash__rope__freq_base": 1e6}
    spec = fit(read_spec(of_architecture(source, "qwen35-dflash-draft", **wrong)), TARGET_SPEC)
    assert spec.rope_base == 1e7 and any("rotary base" in note for note in spec.notes)
    assert fit(read_spec(edited(source, **wrong)), TARGET_SPEC).rope_base == 1e6
    missing = fit(read_spec(edited(source, dflash__rope__freq_base=None)), TARGET_SPEC)
    assert missing.rope_base == 1e7 and any("rotary base" in note for note in missing.notes)


def test_lucebox_names_and_keys_are_read(source: GGUFFile, device: str) -> None:
    old = of_architecture(source, "qwen35-dflash-draft")
    renames = {"fc.weight": "dflash.fc.weight", "enc.output_norm.weight": "dflash.hidden_norm.weight"}
    old.tensors = {renames.get(name, name): info for name, info in source.tensors.items()}
    old._bytes = {renames.get(name, name): data for name, data in source._bytes.items()}
    old.tensors = {
        name: TensorInfo(name, info.shape, info.block_type, info.nbytes) for name, info in old.tensors.items()
    }
    model, arrays = build(old, device), GOLDENS[0].arrays
    context = fresh(model)
    model.project(torch.from_numpy(arrays["features"][:5]).to(device), context)
    hidden = model.block(torch.tensor(int(arrays["anchor"][1]), device=device), 16, context)
    assert difference(hidden, arrays["q8_hidden_5"]) < TOLERANCE


def test_a_draft_s_own_table_and_head_are_used(source: GGUFFile, device: str) -> None:
    own = edited(
        source,
        {name: facts(name, 512, 128) for name in ("token_embd.weight", "output.weight")},
        dflash__logit_scale=0.5,
    )
    stored = np.load(VENDORED / "draft" / "t-a.npz")
    own._bytes = dict(source._bytes)
    for name, key in (("token_embd.weight", "embed"), ("output.weight", "head")):
        own._bytes[name] = np.frombuffer(bytearray(stored[key].tobytes()), np.uint8)
    bare = target_on(device, table=None, matrix=None)
    model = dflash.build(read_spec(own), Weights(DraftTensors(own), device, "float32"), bare)
    borrowing = build(source, device)
    assert model.nbytes == borrowing.nbytes + 2 * 512 * 128 * 4
    arrays = GOLDENS[0].arrays
    context = fresh(model)
    model.project(torch.from_numpy(arrays["features"][:5]).to(device), context)
    logits = model.logits(model.block(torch.tensor(int(arrays["anchor"][1]), device=device), 16, context))
    assert difference(logits, 0.5 * arrays["q8_logits_5"]) < TOLERANCE


# ------------------------------------------------------------------------------------------------- shortlists

SHORT = tuple(range(5, 512, 3))


def with_whole_numbers(source: DraftSource, values: Sequence[int], name: str = "d2t") -> DraftSource:
    """The file or directory with one more tensor, of int64."""
    changed = copy.copy(source)
    stored = np.array(values, np.int64)
    info = UnsupportedTensorInfo(source.path, name, stored.shape, "I64", stored.nbytes)
    changed.tensors = {**source.tensors, name: info}
    changed._bytes = {**source._bytes, name: np.frombuffer(bytearray(stored.tobytes()), np.uint8)}
    return changed


def with_own_head(source: DraftSource, ids: Sequence[int]) -> DraftSource:
    """The draft with the target's head rows `ids` as its own."""
    changed = copy.copy(source)
    rows = np.load(VENDORED / "draft" / "t-a.npz")["head"][list(ids)]
    name = "output.weight" if isinstance(source, GGUFFile) else "lm_head.weight"
    changed.tensors = {**source.tensors, name: facts(name, *rows.shape)}
    changed._bytes = {**source._bytes, name: np.frombuffer(bytearray(rows.tobytes()), np.uint8)}
    return changed


def proposes_from_the_shortlist(draft: DraftSource, whole: DraftModel, device: str) -> None:
    """Its logits are columns of the target's head."""
    model = build(draft, device)
    assert model.spec.shortlist == SHORT and model.spec.vocab == 512
    hidden = torch.randn(15, 128, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.allclose(model.logits(hidden), whole.logits(hidden)[:, list(SHORT)], atol=1e-4)
    columns = torch.tensor([[0, 168], [2, 1]], device=device)
    assert model.token_ids(columns).tolist() == [[5, 509], [11, 8]]
    assert torch.equal(whole.token_ids(columns), columns)
    assert model.nbytes == whole.nbytes + len(SHORT) * 128 * 4


@pytest.mark.parametrize("form", ["own key", "d2t", "d2t and its own head"])
def test_a_shortlist_in_a_file(source: GGUFFile, form: str, device: str) -> None:
    draft = {
        "own key": edited(source, dflash__shortlist=list(SHORT)),
        "d2t": with_whole_numbers(source, SHORT),
        "d2t and its own head": with_own_head(with_whole_numbers(source, SHORT), SHORT),
    }[form]
    proposes_from_the_shortlist(draft, build(source, device), device)


def test_a_shortlist_in_a_directory(oracle: Path, device: str) -> None:
    published = open_source(oracle / "draft" / "d1-a")
    offsets = [token - row for row, token in enumerate(SHORT)]
    draft = with_whole_numbers(with_whole_numbers(published, offsets), [1] * 512, "t2d")
    proposes_from_the_shortlist(with_own_head(draft, SHORT), build(published, device), device)


@pytest.mark.parametrize("ids", [[], [3, 2], [1, 1, 2], [-1, 4], [0, 512]], ids=str)
def test_shortlists_that_make_no_sense(source: GGUFFile, ids: list[int]) -> None:
    if not ids or ids[0] >= 0:
        refused(FormatError, lambda: read_spec(edited(source, dflash__shortlist=ids)), "ascending")
    refused(FormatError, lambda: read_spec(with_whole_numbers(source, ids)), "ascending", "0 to 511")


def test_a_shortlist_beyond_the_target_s_tokens(source: GGUFFile) -> None:
    unlabelled = edited(source, dflash__shortlist=[0, 600], tokenizer__ggml__tokens=None)
    refused(DraftMismatchError, lambda: fit(read_spec(unlabelled), TARGET_SPEC), "token 600", "512")


def test_an_own_head_has_a_row_for_each_token_of_the_shortlist(source: GGUFFile) -> None:
    wrong = with_own_head(with_whole_numbers(source, SHORT), SHORT[1:])
    refused(FormatError, lambda: build(wrong, "cpu"), "output.weight", "(169, 128)")
    numbers = edited(source, {"d2t": facts("d2t", 4)})
    numbers._bytes = {**source._bytes, "d2t": np.zeros(16, np.uint8)}
    refused(FormatError, lambda: read_spec(numbers), "d2t", "F32", "I64")


# --------------------------------------------------------------------------------------------------- refusals


def refused(error: type[DraftwoodError], action: Callable[[], object], *words: str) -> None:
    """The action ends in one clear sentence that has these words."""
    with pytest.raises(error) as caught:
        action()
    sentence = str(caught.value)
    assert type(caught.value) is error
    assert len(sentence) < 300 and "\n" not in sentence and sentence.endswith(".")
    for word in words:
        assert word in sentence, sentence


def changed_target(**changes: Any) -> ModelSpec:
    return ModelSpec(**{**TARGET_SPEC.__dict__, **changes})


def test_drafts_of_another_target_are_refused(source: GGUFFile) -> None:
    spec = read_spec(source)
    mismatch = DraftMismatchError
    refused(mismatch, lambda: fit(spec, changed_target(hidden=256)), "hidden size 128", "hidden size 256")
    refused(mismatch, lambda: fit(spec, changed_target(layers=5)), "at least 6 layers", "and 5 layers")
    refused(mismatch, lambda: fit(spec, changed_target(vocab=510)), "mask token is 510")
    refused(mismatch, lambda: fit(read_spec(directory()), changed_target(layers=9)), "8 layers", "9 layers")
    own = edited(source, {"output.weight": facts("output.weight", 300, 128)})
    refused(
        mismatch,
        lambda: dflash.build(read_spec(own), Weights(DraftTensors(own), "cpu", "float32"), target_on("cpu")),
        "300 rows",
        "512",
    )


def test_other_kinds_of_drafts_are_refused(source: GGUFFile) -> None:
    def with_tensor(name: str) -> Callable[[], object]:
        return lambda: read_spec(edited(source, {name: facts(name, 4, 4)}))

    kind = UnsupportedModelError
    refused(kind, with_tensor("selector_hidden.weight"), "DFlash 2")
    refused(kind, with_tensor("blk.0.attn_conv_base"), "DFlash 2")
    refused(kind, with_tensor("markov_w1.weight"), "DSpark")
    refused(kind, with_tensor("dflash.dspark.markov.w1"), "DSpark")
    refused(kind, with_tensor("conf_proj.bias"), "DSpark")
    refused(kind, with_tensor("dflash.domino.gru"), "Domino")
    refused(kind, with_tensor("blk.0.attn_sinks.weight"), "attn_sinks")
    refused(kind, with_tensor("blk.0.attn_q.bias"), "attn_q.bias")
    refused(kind, lambda: read_spec(of_architecture(source, "gemma4-dflash-draft")), "gemma4-dflash-draft")
    refused(kind, lambda: read_spec(directory(rope_scaling={"rope_type": "yarn"})), "yarn")
    refused(kind, lambda: read_spec(edited(source, dflash__decoder_arch="laguna")), "laguna")
    refused(kind, lambda: read_spec(edited(source, dflash__attention__value_length=32)), "different width")
    plain = SafetensorsDirectory(Path("m"), {"hidden_size": 4, "architectures": ["LlamaForCausalLM"]}, {}, {})
    refused(kind, lambda: read_spec(plain), "dflash_config")


def test_the_dflash_2_directory_is_refused(oracle: Path) -> None:
    refused(UnsupportedModelError, lambda: read_spec(open_source(oracle / "draft" / "d2-a")), "DFlash 2", "d2-a")


def test_incomplete_drafts_are_refused(source: GGUFFile) -> None:
    def without(**keys: Any) -> Callable[[], object]:
        return lambda: read_spec(edited(source, **keys))

    refused(FormatError, lambda: read_spec(edited(source, {"fc.weight": None})), "fc.weight")
    refused(
        FormatError,
        lambda: read_spec(edited(source, {"fc.weight": facts("fc.weight", 128, 385)})),
        "fc.weight",
    )
    refused(FormatError, without(tokenizer__ggml__mask_token_id=None), "mask token id is missing")
    refused(FormatError, without(dflash__target_layers=None), "target_layers")
    refused(FormatError, without(dflash__target_layers=[0, 2, 4]), "tap shift")
    refused(FormatError, without(dflash__target_layers=[True]), "target_layers")
    refused(FormatError, without(dflash__block_count=None), "block_count")
    refused(FormatError, without(dflash__block_size=65), "block_size", "65")
    refused(FormatError, without(dflash__attention__head_count_kv=3), "KV heads")
    refused(FormatError, without(dflash__attention__sliding_window=8), "for which layers")
    refused(FormatError, without(**{**SLIDING, "dflash__attention__sliding_window": None}), "how long")
    refused(FormatError, without(**{**SLIDING, "dflash__block_count": 4}), "pattern")
    refused(FormatError, without(dflash__rope__freq_base=float("nan")), "rope.freq_base")
    refused(FormatError, lambda: read_spec(directory(is_causal="no")), "is_causal")
    missing = edited(source, {"blk.1.attn_k.weight": None})
    refused(FormatError, lambda: build(missing, "cpu"), "blk.1.attn_k.weight")


def test_wrong_options_are_refused(source: GGUFFile) -> None:
    refused(UsageError, lambda: read_spec(source, causal="some"), "some", "sliding")
    refused(UsageError, lambda: read_spec(source, tap_shift="2"), "2", "auto")


def test_reading_the_facts_needs_no_torch() -> None:
    import subprocess
    import sys

    program = "import sys; sys.modules['torch'] = None; import draftwood.models.draft_spec"
    subprocess.run([sys.executable, "-c", program], check=True)
