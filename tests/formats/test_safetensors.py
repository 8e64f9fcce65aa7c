from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from draftwood.errors import DraftwoodError, FileError, FormatError, UnsupportedModelError
from draftwood.formats.safetensors import SafetensorsDirectory

TENSORS = {
    "norm": torch.arange(3, dtype=torch.bfloat16),
    "a.weight": torch.arange(12, dtype=torch.float32).view(4, 3),
    "b.weight": torch.arange(24, dtype=torch.float16).view(2, 3, 4),
    "scale": torch.tensor(0.5),
    "steps": torch.arange(5),
}
CONFIG = {"architectures": ["Draft"], "hidden_size": 3}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    names = list(TENSORS)
    weight_map = {}
    for number, part in enumerate((names[:2], names[2:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: TENSORS[name] for name in part}, tmp_path / file)
        weight_map.update(dict.fromkeys(part, file))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def check(source: SafetensorsDirectory) -> None:
    assert source.config == CONFIG
    assert set(source.tensors) == set(TENSORS)
    for name, stored in (("norm", "BF16"), ("a.weight", "F32"), ("b.weight", "F16"), ("scale", "F32")):
        tensor, info, raw = TENSORS[name], source.tensors[name], source.raw(name)
        assert info.shape == (tuple(tensor.shape) or (1,))
        assert info.block_type.name == stored
        assert info.nbytes == raw.size == tensor.nbytes
        assert raw.dtype == np.uint8 and raw.shape == (*info.shape[:-1], info.shape[-1] * tensor.itemsize)
        assert raw.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert np.shares_memory(raw, source.raw(name))


def refused(path: Path, kind: type[DraftwoodError], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        SafetensorsDirectory.open(path)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert len(message) < 300 and "\n" not in message
    for part in parts:
        assert part in message


def test_single(single: Path) -> None:
    check(SafetensorsDirectory.open(single))
    check(SafetensorsDirectory.open(str(single / "model.safetensors")))


def test_sharded(sharded: Path) -> None:
    check(SafetensorsDirectory.open(sharded))
    check(SafetensorsDirectory.open(sharded / "model-00002-of-00002.safetensors"))
    check(SafetensorsDirectory.open(sharded / "model.safetensors.index.json"))


def test_other_dtypes_matter_only_when_used(single: Path) -> None:
    source = SafetensorsDirectory.open(single)
    assert source.tensors["steps"].shape == (5,)
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors: tensor 'steps' is stored as I64"):
        source.raw("steps")


def test_whole_numbers(single: Path) -> None:
    source = SafetensorsDirectory.open(single)
    found = source.whole_numbers("steps")
    assert found.dtype == np.int64 and found.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(FormatError, match=r"'norm' is stored as BF16.*I32 or I64"):
        source.whole_numbers("norm")


def test_missing_files(single: Path) -> None:
    refused(single / "absent", FileError, "absent does not exist")
    (single / "config.json").rename(single / "other.json")
    refused(single, FileError, "config.json does not exist")
    (single / "other.json").rename(single / "config.json")
    (single / "model.safetensors").unlink()
    refused(single, FileError, "holds neither model.safetensors nor")


def test_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, FileError, "model-00002-of-00002.safetensors is missing", "all 2 shards")


def test_damaged_config(single: Path) -> None:
    for content in ("", "{", "[1]", "\x00", "[" * 100_000):
        (single / "config.json").write_text(content)
        refused(single, FormatError, "config.json")


@pytest.mark.parametrize(
    ("index", "part"),
    [
        ({}, "no weight_map"),
        ({"weight_map": []}, "no weight_map"),
        ({"weight_map": {"norm": "../model-00001-of-00002.safetensors"}}, "outside its directory"),
        ({"weight_map": {"norm": "/etc/passwd"}}, "outside its directory"),
        ({"weight_map": {"norm": 3}}, "outside its directory"),
        ({"weight_map": {"other": "model-00001-of-00002.safetensors"}}, "does not hold tensor 'other'"),
    ],
)
def test_damaged_index(sharded: Path, index: object, part: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(sharded, FormatError, part)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:5],
        lambda whole: whole[:50],
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda whole: struct.pack("<Q", 2**63) + whole[8:],
        lambda whole: whole.replace(b"data_offsets", b"data_offzets"),
        lambda whole: whole.replace(b'"F32"', b'"F99"'),
        lambda whole: whole.replace(b"[4,3]", b"[4,4]"),
    ],
)
def test_damaged_weights(single: Path, damage: Callable[[bytes], bytes]) -> None:
    path = single / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused(single, FormatError, "model.safetensors is not a sound safetensors file")


def test_empty_weights(single: Path) -> None:
    (single / "model.safetensors").write_bytes(b"")
    refused(single, FormatError, "model.safetensors is empty")


def test_mutated_weights(single: Path) -> None:
    path = single / "model.safetensors"
    whole = path.read_bytes()
    rng = random.Random(1)
    opened = 0
    for _ in range(300):
        content = bytearray(whole)
        content[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            source = SafetensorsDirectory.open(single)
            for name in source.tensors:
                source.raw(name).sum()
            opened += 1
        except DraftwoodError as error:
            assert len(str(error)) < 300
    assert opened < 300
