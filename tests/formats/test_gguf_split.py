from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from draftwood.errors import FileError, FormatError
from draftwood.formats.gguf import GGUFFile

NAMES = [f"blk.{i}.weight" for i in range(7)]


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Four shards written by the `gguf` library's own splitter, two tensors each."""
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", split_max_tensors=2)
    writer.add_uint32("answer", 42)
    for i, name in enumerate(NAMES):
        writer.add_tensor(name, np.full((2, 8), i, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = sorted(tmp_path.glob("big-*.gguf"))
    assert [path.name for path in found] == [f"big-0000{i}-of-00004.gguf" for i in (1, 2, 3, 4)]
    return found


def test_any_shard_opens_all(shards: list[Path]) -> None:
    for opened in shards:
        file = GGUFFile.open(opened)
        assert file.path == opened and file.files == tuple(shards)
        assert file.architecture == "llama" and file.metadata["answer"] == 42
        assert list(file.tensors) == NAMES
        for i, name in enumerate(NAMES):
            assert (file.raw(name).view("<f4") == i).all()


def test_missing_shard(shards: list[Path]) -> None:
    shards[2].unlink()
    with pytest.raises(FileError, match=r"big-00003-of-00004\.gguf is missing: put all 4 shards"):
        GGUFFile.open(shards[0])


def test_renamed_shard(shards: list[Path]) -> None:
    renamed = shards[0].rename(shards[0].with_name("model.gguf"))
    with pytest.raises(FormatError, match=r"model\.gguf is one of 4 shards but is not named so"):
        GGUFFile.open(renamed)


def test_swapped_shards(shards: list[Path]) -> None:
    second, third = shards[1].read_bytes(), shards[2].read_bytes()
    shards[1].write_bytes(third)
    shards[2].write_bytes(second)
    with pytest.raises(FormatError, match=r"big-00002-of-00004\.gguf says it is shard 2 \(from 0\) of 4"):
        GGUFFile.open(shards[0])


def test_shard_of_another_kind(shards: list[Path]) -> None:
    shards[3].write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(FormatError, match=r"says it is shard an unknown number"):
        GGUFFile.open(shards[0])


def test_truncated_shard(shards: list[Path]) -> None:
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-40])
    with pytest.raises(FormatError, match=r"big-00002-of-00004\.gguf has .* truncated"):
        GGUFFile.open(shards[3])


def test_a_tensor_in_two_shards(shards: list[Path]) -> None:
    content = shards[1].read_bytes()
    assert content.count(b"blk.2.weight") == 1
    shards[1].write_bytes(content.replace(b"blk.2.weight", b"blk.0.weight"))
    with pytest.raises(FormatError, match=r"tensor 'blk\.0\.weight' a second time"):
        GGUFFile.open(shards[0])


def test_wrong_number_of_tensors(shards: list[Path]) -> None:
    content = shards[0].read_bytes()
    at = content.index(b"split.tensors.count") + len("split.tensors.count") + 4
    shards[0].write_bytes(content[:at] + struct.pack("<I", 9) + content[at + 4 :])
    with pytest.raises(FormatError, match=r"hold 7 tensors, but the first announces 9"):
        GGUFFile.open(shards[0])
