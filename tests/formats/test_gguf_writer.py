"""GGUF files as we write them: what is read back, and what is left after a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from draftwood.formats.gguf import GGUFFile
from draftwood.formats.gguf_writer import write_gguf
from draftwood.formats.source import TensorInfo

METADATA: dict[str, Any] = {
    "general.architecture": "test",
    "test.whole": 7,
    "test.real": 0.5,
    "test.text": "Grüße",
    "test.flag": True,
    "test.numbers": [11, -11, 0],
    "test.flags": [True, False],
    "test.words": ["a", "", "b c"],
}
TABLE = (("m.weight", (3, 512), "Q4_K"), ("n", (5,), "F32"), ("o", (2, 64), "Q8_0"))
TENSORS = [TensorInfo.of(*row) for row in TABLE]


def stored(name: str) -> npt.NDArray[np.uint8]:
    info = next(info for info in TENSORS if info.name == name)
    return np.random.default_rng(len(name)).integers(0, 256, (info.nbytes,), dtype=np.uint8)


def test_it_is_read_back(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", METADATA, TENSORS, stored)
    file = GGUFFile.open(tmp_path / "a.gguf")
    assert dict(file.metadata) == METADATA
    assert list(file.tensors.values()) == TENSORS
    for info in TENSORS:
        assert np.array_equal(file.raw(info.name).reshape(-1), stored(info.name))
    theirs = gguf.GGUFReader(tmp_path / "a.gguf")
    assert theirs.fields["test.whole"].types == [gguf.GGUFValueType.UINT32]
    assert theirs.fields["test.numbers"].types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
    assert tuple((t.name, tuple(t.shape)[::-1], t.tensor_type.name) for t in theirs.tensors) == TABLE


@pytest.mark.parametrize("cause", [KeyboardInterrupt, OSError, ValueError])
def test_a_failure_leaves_nothing_and_harms_nothing(tmp_path: Path, cause: type[BaseException]) -> None:
    (tmp_path / "a.gguf").write_text("before")
    asked: list[str] = []

    def failing(name: str) -> npt.NDArray[np.uint8]:
        asked.append(name)
        if len(asked) == 2:
            raise cause
        return stored(name)

    with pytest.raises(cause):
        write_gguf(tmp_path / "a.gguf", METADATA, TENSORS, failing)
    assert asked == ["m.weight", "n"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
    assert (tmp_path / "a.gguf").read_text() == "before"


def test_a_tensor_is_asked_for_only_when_the_one_before_is_written(tmp_path: Path) -> None:
    sizes: list[int] = []

    def watched(name: str) -> npt.NDArray[np.uint8]:
        (part,) = tmp_path.glob(".*.part")
        sizes.append(part.stat().st_size)
        return stored(name)

    big = [TensorInfo.of(f"t{i}", (1024, 256), "F32") for i in range(3)]
    write_gguf(tmp_path / "b.gguf", METADATA, big, lambda name: (watched("n"), np.zeros(1 << 20, np.uint8))[1])
    assert sizes[0] < 1 << 19 < sizes[1] < sizes[2]
