"""Models that need no file: names, variants, and headers as of their files."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from draftwood.errors import UsageError
from draftwood.formats.header import ModelHeader
from draftwood.models import known
from draftwood.models.draft_spec import fit, read_spec
from draftwood.models.registry import architecture
from draftwood.models.spec import ModelSpec

NAME = "qwen3.6-27b"


def spec_of(header: ModelHeader) -> ModelSpec:
    return architecture(header).read_spec(header)


@pytest.mark.parametrize("name", [NAME, "Qwen3.6-27B", "qwen3.5-27b", " 27b "])
def test_spellings(name: str) -> None:
    assert known.key_of(name) == NAME
    assert known.key_of(f"{name.strip()}-4Layers") == f"{NAME}-4layers"


@pytest.mark.parametrize("name", ["gpt-9", "", "tiny", "27b-5layers", "27bb", "27b-", "synthetic:27b"])
def test_other_names(name: str) -> None:
    assert known.key_of(name) is None


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("27b", NAME),
        ("synthetic:27b-tiny", f"{NAME}-tiny"),
        ("Synthetic:qwen3.6-27B-DFlash", f"{NAME}-dflash:q8_0"),
        ("qwen3.6-27b-4layers-dflash:Q4_K_M", f"{NAME}-4layers-dflash:q4_k_m"),
    ],
)
def test_full_names(name: str, path: str) -> None:
    assert str(known.header(name).path) == f"synthetic:{path}"


@pytest.mark.parametrize("name", ["synthetic:nobody", "synthetic:", "27b:q8_0", "27b-dflash:q3_k", "27b-dflash-tiny"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match=r"synthetic:qwen3\.6-27b-4layers") as raised:
        known.header(name)
    assert len(str(raised.value)) < 300


def test_a_variant_has_the_first_layers_of_the_whole() -> None:
    whole, short = known.header(NAME), known.header(f"{NAME}-4layers")
    assert spec_of(short).attention == (False, False, False, True)
    assert spec_of(short).layers == 4 and spec_of(whole).layers == 64
    for name, info in short.tensors.items():
        assert whole.tensors[name] == info
    assert {info.type_name for info in short.tensors.values()} == {"F32", "Q8_0", "Q4_K", "Q5_K", "Q6_K"}


@pytest.mark.parametrize("variant", ["", "-4layers", "-tiny"])
@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_every_variant_has_its_drafts(variant: str, kind: str) -> None:
    target = known.header(NAME + variant)
    draft = known.header(f"{NAME}{variant}-dflash:{kind}")
    spec = fit(read_spec(draft), spec_of(target))
    assert spec.hidden == spec_of(target).hidden and max(spec.taps) < spec_of(target).layers
    assert len(spec.taps) == 5 and spec.taps == tuple(sorted(spec.taps))
    assert spec.windows[-1] is None and spec.causal == (True, True, True, True, False)
    matrices = {info.type_name for info in draft.tensors.values() if len(info.shape) == 2}
    assert matrices == {"Q8_0" if kind == "q8_0" else "Q4_K"}
    assert draft.vocab == target.vocab == target.tensors["token_embd.weight"].shape[0]


def test_reals_have_the_bits_that_a_file_gives_back() -> None:
    eps = known.header(NAME).metadata["qwen35.attention.layer_norm_rms_epsilon"]
    assert eps == float(np.float32(1e-6)) != 1e-6


def test_changes_take_the_place_of_a_variant() -> None:
    changed = known.target(NAME, known.Changes(512, {"qwen35.block_count": 8, "qwen35.embedding_length": 256}))
    assert spec_of(changed).layers == 8
    assert changed.tensors["output.weight"].shape == (512, 256)
    assert changed.tensors["blk.0.attn_qkv.weight"].shape == (10240, 256)


def test_tensors_lie_block_by_block() -> None:
    blocks = [int(name.split(".")[1]) for name in known.header(NAME).tensors if name.startswith("blk.")]
    assert blocks == sorted(blocks)


def test_names_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from draftwood.engine.sources import open_target\n"
        "source = open_target('synthetic:qwen3.6-27b')\n"
        "print(len(source.tensors), source.fingerprint)"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] == "851"
