"""Damaged files end in one sentence: never a crash, a hang or a giant allocation."""

from __future__ import annotations

import random
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import gguf
import numpy as np
import pytest

from draftwood.errors import DraftwoodError, FormatError
from draftwood.formats.gguf import GGUFFile

SEED = 20240607
MUTATIONS = 300
LIMIT_SECONDS = 20
LIMIT_BYTES = 64 << 20
EXTREMES = [
    0,
    1,
    2,
    7,
    8,
    9,
    13,
    31,
    255,
    2**16,
    2**24 + 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**63,
    2**64 - 1,
]


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {LIMIT_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def small_allocations() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < LIMIT_BYTES
    finally:
        tracemalloc.stop()


def opens_or_says_why(path: Path) -> str:
    """ "opened" after a look at every tensor's first and last byte, else the message."""
    try:
        file = GGUFFile.open(path)
        for name, info in file.tensors.items():
            flat = file.raw(name).reshape(-1)
            assert flat.size == info.nbytes
            _ = int(flat[0]) + int(flat[-1])
    except DraftwoodError as error:
        message = str(error)
        assert len(message) < 300 and "\n" not in message and path.name in message
        return message
    return "opened"


def synthetic(path: Path) -> Path:
    """A small file with every kind of metadata, many block types and short rows."""
    writer = gguf.GGUFWriter(path, "test")
    writer.add_uint8("u8", 1)
    writer.add_bool("flag", True)
    writer.add_float64("f64", 0.5)
    writer.add_string("text", "hello")
    writer.add_array("ints", [1, 2, 3])
    writer.add_array("texts", ["a", "bc", ""])
    writer.add_array("floats", [0.5, 1.5])
    rng = random.Random(SEED)
    for kind in ("F32", "F16", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS"):
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        data = np.frombuffer(rng.randbytes(3 * 256 // block * size), dtype="u1")
        writer.add_tensor(f"{kind}.weight", data.reshape(3, -1), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fields_of(reader: gguf.GGUFReader) -> list[tuple[int, int]]:
    """(position, bytes) of every count, length, type, dimension and offset in the header."""
    fields = [(4, 4), (8, 8), (16, 8)]
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            at = field.offset + 8 + len(key.encode())
            fields += [(field.offset, 8), (at, 4), (at + 4, 4), (at + 4, 8), (at + 8, 8)]
    for tensor in reader.tensors:
        at = tensor.field.offset
        for part in tensor.field.parts:
            if part.dtype.itemsize > 1:
                fields += [(at + i * part.dtype.itemsize, part.dtype.itemsize) for i in range(part.size)]
            at += part.nbytes
    return fields


def mutations(path: Path) -> list[list[tuple[int, bytes]]]:
    """Patches of the header, by a fixed seed: structural fields set to extremes, and random bytes."""
    rng = random.Random(SEED)
    reader = gguf.GGUFReader(path)
    fields = fields_of(reader)
    table = [field for field in fields if field[0] >= reader.tensors[0].field.offset]
    found = []
    for number in range(MUTATIONS):
        patches = []
        for _ in range(rng.choice((1, 1, 1, 3))):
            if number % 3 == 2:
                patches.append((rng.randrange(reader.data_offset), rng.randbytes(1)))
                continue
            at, width = rng.choice(table if number % 3 else fields)
            value = rng.choice([*EXTREMES, rng.getrandbits(8 * width)])
            patches.append((at, (value % 2 ** (8 * width)).to_bytes(width, "little")))
        found.append(patches)
    return found


@pytest.mark.parametrize("which", ["l-b", "synthetic"])
def test_mutated_headers(tmp_path: Path, vendored: Path, which: str) -> None:
    path = tmp_path / "mutated.gguf"
    if which == "l-b":
        path.write_bytes((vendored / "models/l-b.Q4_1.gguf").read_bytes())
    else:
        synthetic(path)
    whole = path.read_bytes()
    outcomes = []
    planned = mutations(path)
    with no_hang(), small_allocations():
        assert opens_or_says_why(path) == "opened"
        for patches in planned:
            with path.open("r+b") as file:
                for at, content in patches:
                    file.seek(at)
                    file.write(content)
            outcomes.append(opens_or_says_why(path))
            with path.open("r+b") as file:
                for at, content in patches:
                    file.seek(at)
                    file.write(whole[at : at + len(content)])
    assert path.read_bytes() == whole
    # Most of the structural ones are found; harmless ones (a changed letter, a type of equal size) open.
    assert len(outcomes) == MUTATIONS
    assert outcomes.count("opened") < MUTATIONS // 2
    assert len(set(outcomes)) > 20


def test_truncated_anywhere(tmp_path: Path, vendored: Path) -> None:
    whole = (vendored / "models/l-b.Q4_1.gguf").read_bytes()
    path = tmp_path / "truncated.gguf"
    rng = random.Random(SEED)
    header = gguf.GGUFReader(vendored / "models/l-b.Q4_1.gguf").data_offset
    places = [rng.randrange(1, header) for _ in range(10)] + [rng.randrange(header, len(whole)) for _ in range(10)]
    with no_hang(), small_allocations():
        for place in [*places, len(whole) - 1]:
            path.write_bytes(whole[:place])
            with pytest.raises(FormatError, match=r"truncated\.gguf"):
                GGUFFile.open(path)


def test_a_huge_sparse_file_allocates_nothing(
    tmp_path: Path, build: Callable[..., bytes], key_value: Callable[[str, int, bytes], bytes]
) -> None:
    # 400 GB on paper: it can be mapped on a small machine, every length below "fits", and none is believed.
    path = tmp_path / "sparse.gguf"
    text = key_value("k", 8, (2**34).to_bytes(8, "little"))
    numbers = key_value("k", 9, (0).to_bytes(4, "little") + (2**33).to_bytes(8, "little"))
    texts = key_value("k", 9, (8).to_bytes(4, "little") + (2**32).to_bytes(8, "little"))
    with no_hang(), small_allocations():
        for entry in (text, numbers, texts):
            path.write_bytes(build([entry]))
            with path.open("r+b") as file:
                file.truncate(400 << 30)
            with pytest.raises(FormatError, match="key 'k'"):
                GGUFFile.open(path)
