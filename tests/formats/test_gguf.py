from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from draftwood.errors import DraftwoodError, FileError, FormatError, UnsupportedModelError
from draftwood.formats.gguf import GGUFFile

MODELS = [
    "models/q35-c.Q4_K_M.gguf",
    "models/l-b.Q4_1.gguf",
    "models/q3-b.Q4_K_M.gguf",
    "draft/d1-a.Q8_0.dflash.gguf",
]
Build = Callable[..., bytes]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refused(path: Path, kind: type[DraftwoodError], *parts: str) -> None:
    """Opening fails with exactly this kind of error, in one short sentence that names the file and says
    `parts`."""
    with pytest.raises(kind) as caught:
        GGUFFile.open(path)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert len(message) < 300 and "\n" not in message and message.count(". ") == 0
    assert path.name in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("model", MODELS)
def test_agrees_with_the_gguf_library(vendored: Path, model: str) -> None:
    ours, theirs = GGUFFile.open(vendored / model), gguf.GGUFReader(vendored / model)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        assert ours.metadata[key] == field.contents(), key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert info.block_type.name == tensor.tensor_type.name
        assert info.nbytes == tensor.n_bytes
        raw = ours.raw(tensor.name)
        assert raw.shape == (*info.shape[:-1], info.block_type.row_bytes(info.shape[-1]))
        assert raw.tobytes() == tensor.data.tobytes()


def test_raw_is_a_view_that_torch_takes_without_a_warning(vendored: Path) -> None:
    path = vendored / MODELS[1]
    before = path.read_bytes()
    file = GGUFFile.open(path)
    raw = file.raw("token_embd.weight")
    assert np.shares_memory(raw, file.raw("token_embd.weight"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.from_numpy(raw)[:] = 0  # the mapping is private: the file must not change
    assert path.read_bytes() == before


def test_get_and_require(vendored: Path) -> None:
    file = GGUFFile.open(str(vendored / MODELS[0]))
    assert file.architecture == "qwen35"
    assert file.get("no.such.key") is None and file.get("no.such.key", 7) == 7
    assert file.require("general.architecture") == "qwen35"
    with pytest.raises(FormatError, match=r"no metadata key 'no\.such\.key'"):
        file.require("no.such.key")


def test_every_value_type_and_both_versions(
    tmp_path: Path, build: Build, key_value: Callable[[str, int, bytes], bytes]
) -> None:
    values: dict[int, tuple[str, float]] = {
        0: ("B", 200), 1: ("b", -3), 2: ("H", 65535), 3: ("h", -300), 4: ("I", 2**32 - 1), 5: ("i", -(2**31)),
        6: ("f", 0.5), 7: ("?", True), 10: ("Q", 2**64 - 1), 11: ("q", -(2**63)), 12: ("d", 0.1),
    }  # fmt: skip
    pairs = [key_value(f"k{kind}", kind, struct.pack(f"<{code}", value)) for kind, (code, value) in values.items()]
    for kind, (code, value) in values.items():
        pairs.append(key_value(f"a{kind}", 9, struct.pack(f"<IQ3{code}", kind, 3, value, value, value)))
    pairs.append(key_value("text", 8, struct.pack("<Q", 3) + "né".encode()))
    pairs.append(key_value("none", 9, struct.pack("<IQ", 8, 0)))
    pairs.append(key_value("zero", 9, struct.pack("<IQ", 5, 0)))
    pairs.append(key_value("odd", 8, struct.pack("<Q", 2) + b"a\xff"))
    for version in (2, 3):
        file = GGUFFile.open(write(tmp_path / f"v{version}.gguf", build(pairs, version=version)))
        for kind, (_, value) in values.items():
            assert file.metadata[f"k{kind}"] == value and type(file.metadata[f"k{kind}"]) is type(value)
            assert file.metadata[f"a{kind}"] == [value] * 3 and type(file.metadata[f"a{kind}"][0]) is type(value)
        assert file.metadata["text"] == "né"
        assert file.metadata["none"] == file.metadata["zero"] == []
        assert file.metadata["odd"] == "a\ufffd"
        with pytest.raises(FormatError, match=r"general\.architecture"):
            _ = file.architecture


def test_scalar_and_alignment(tmp_path: Path, build: Build, key_value: Callable[[str, int, bytes], bytes]) -> None:
    pairs = [key_value("general.alignment", 4, struct.pack("<I", 64))]
    data = struct.pack("<f", 1.5) + bytes(60) + struct.pack("<2f", 2, 3)
    content = build(pairs, [("scalar", [], 0, 0), ("pair", [2, 1], 0, 64)], data, alignment=64)
    file = GGUFFile.open(write(tmp_path / "aligned.gguf", content))
    assert file.tensors["scalar"].shape == (1,) and file.tensors["pair"].shape == (1, 2)
    assert file.raw("scalar").view("<f4").tolist() == [1.5]
    assert file.raw("pair").view("<f4").tolist() == [[2, 3]]


def test_unsupported_types_matter_only_when_used(tmp_path: Path, build: Build) -> None:
    tensors = [("fine", [8], 0, 0), ("strange", [256], 16, 32), ("unknown", [32], 99, 128)]
    file = GGUFFile.open(write(tmp_path / "types.gguf", build([], tensors, bytes(160))))
    assert file.raw("fine").shape == (32,)
    assert "strange" in repr(file.tensors["strange"])
    for name, stored in (("strange", "IQ2_XXS"), ("unknown", "type 99")):
        assert file.tensors[name].shape[-1] in (32, 256)
        with pytest.raises(UnsupportedModelError, match=f"types.gguf: tensor '{name}' is stored as {stored}") as caught:
            _ = file.tensors[name].block_type
        assert len(str(caught.value)) < 300
        with pytest.raises(UnsupportedModelError, match=stored):
            file.raw(name)


def test_whole_numbers(tmp_path: Path, build: Build) -> None:
    values = [[3, -1, 7], [0, 5, 9]]
    for code, kind in ((26, "<i4"), (27, "<i8")):
        data = np.array(values, kind).tobytes()
        path = tmp_path / f"{code}.gguf"
        path.write_bytes(build(tensors=[("ids", (3, 2), code, 0), ("w", (2,), 0, 64)], data=data.ljust(72, b"\0")))
        source = GGUFFile.open(path)
        assert source.whole_numbers("ids").dtype == np.int64 and source.whole_numbers("ids").tolist() == values
        with pytest.raises(FormatError, match=r"'w' is stored as F32.*I32 or I64"):
            source.whole_numbers("w")
        with pytest.raises(UnsupportedModelError, match=f"stored as I{8 * int(kind[-1])}"):
            source.raw("ids")


def test_files_that_are_no_gguf(tmp_path: Path, build: Build) -> None:
    refused(tmp_path / "absent.gguf", FileError, "does not exist")
    refused(tmp_path, FormatError, "is a directory")
    refused(write(tmp_path / "empty.gguf", b""), FormatError, "is empty")
    refused(write(tmp_path / "short.gguf", b"GG"), FormatError, "not a GGUF file")
    refused(write(tmp_path / "page.gguf", b"<!DOCTYPE html>" * 9), FormatError, "not a GGUF file")
    refused(write(tmp_path / "big.gguf", build(version=3, order=">")), FormatError, "big-endian")
    refused(write(tmp_path / "one.gguf", build(version=1)), FormatError, "version 1")
    refused(write(tmp_path / "four.gguf", build(version=4)), FormatError, "version 4")
    refused(write(tmp_path / "cut.gguf", build()[:11]), FormatError, "ends inside its counts")
    os.mkfifo(tmp_path / "pipe.gguf")
    refused(tmp_path / "pipe.gguf", FormatError, "not a regular file")


@pytest.mark.parametrize(
    ("tensors", "part"),
    [
        ([("t", [33], 8, 0)], "rows of 33 weights are no whole number of blocks of 32"),
        ([("t", [128], 12, 0)], "Q4_K, but its rows of 128"),
        ([("t", [8], 0, 0), ("t", [8], 0, 32)], "holds tensor 't' twice"),
        ([("t", [8], 0, 8)], "no multiple of 32"),
        ([("t", [8], 0, 64)], "ends at byte"),
        ([("t", [32], 0, 0)], "ends at byte"),
        ([("t", [8], 0, 0), ("u", [16], 1, 0)], "inside another one"),
        ([("t", [2**32, 2**32], 0, 0)], "impossible shape"),
        ([("t", [2**63, 2], 0, 0)], "impossible shape"),
        ([("t", [0], 0, 0)], "impossible shape"),
        ([("t", [1, 1, 1, 1, 1], 0, 0)], "5 dimensions"),
        ([("t", [8], 0, 2**64 - 32)], "ends at byte"),
        ([(b"\xff", [8], 0, 0)], "not text"),
        ([("\n" * 90, [8], 0, 64)], "ends at byte"),
    ],
)
def test_damaged_tensor_tables(tmp_path: Path, build: Build, tensors: list[object], part: str) -> None:
    refused(write(tmp_path / "table.gguf", build([], tensors, bytes(64))), FormatError, part)


@pytest.mark.parametrize(
    ("pairs", "part"),
    [
        ([("k", 13, b"\0" * 8)], "unknown value type 13"),
        ([("k", 9, struct.pack("<IQ", 9, 1) + bytes(64))], "unknown type 9"),
        ([("k", 9, struct.pack("<IQ", 77, 1) + bytes(64))], "unknown type 77"),
        ([("k", 9, struct.pack("<IQ", 8, 2**40))], "more than"),
        ([("k", 9, struct.pack("<IQ", 8, 2**20) + bytes(64))], "ends inside key 'k'"),
        ([("k", 9, struct.pack("<IQ", 0, 2**20))], "ends inside key 'k'"),
        ([("k", 8, struct.pack("<Q", 2**64 - 1) + bytes(8))], "ends inside key 'k'"),
        ([("k", 0, b"\1"), ("k", 0, b"\1")], "holds the key 'k' twice"),
        ([("general.alignment", 4, struct.pack("<I", 24))], "power of two"),
        ([("general.alignment", 4, struct.pack("<I", 0))], "power of two"),
        ([("general.alignment", 6, struct.pack("<f", 32))], "power of two"),
    ],
)
def test_damaged_metadata(
    tmp_path: Path,
    build: Build,
    key_value: Callable[[str, int, bytes], bytes],
    pairs: list[tuple[str, int, bytes]],
    part: str,
) -> None:
    content = build([key_value(*entry) for entry in pairs])
    refused(write(tmp_path / "pairs.gguf", content), FormatError, part)


def test_counts_that_cannot_fit(tmp_path: Path) -> None:
    for counts in ((2**63, 0), (0, 2**63), (2**64 - 1, 2**64 - 1), (40, 0)):
        content = b"GGUF" + struct.pack("<IQQ", 3, *counts) + bytes(400)
        refused(write(tmp_path / "counts.gguf", content), FormatError, "more than fit")
