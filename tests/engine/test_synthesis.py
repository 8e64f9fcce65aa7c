"""A synthetic model in memory and in a file: the same bytes, the same logits, the same tokens by every method."""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftwood import Engine, SamplingParams
from draftwood.engine import loader, sources, synthesis
from draftwood.engine.fetch import DRAFTS, resolve
from draftwood.engine.synthesis import write_synthetic
from draftwood.errors import DeviceError, FileError, UsageError
from draftwood.formats.gguf import GGUFFile
from draftwood.models import known

TARGET = "synthetic:qwen3.6-27b-tiny"
DRAFT = f"{TARGET}-dflash:q4_k_m"
IDS = [104, 105, 700, 3, 42]


@cache
def files(folder: Path) -> tuple[str, str]:
    """Target and draft as files."""
    paths = folder / "target.gguf", folder / "draft.gguf"
    for name, path in zip((TARGET, DRAFT), paths, strict=True):
        write_synthetic(sources.synthetic_model(known.header(name)), path, "cpu")
    return str(paths[0]), str(paths[1])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return files(tmp_path_factory.mktemp("synthetic"))


def loaded(target: str, draft: str | None = None, **options: Any) -> Engine:
    return Engine.load(target, draft=draft, max_context=256, **options)


def test_a_file_has_the_bytes_that_are_drawn(written: tuple[str, str], device: str) -> None:
    for name, path in zip((TARGET, DRAFT), written, strict=True):
        made, file = sources.synthetic_model(known.header(name)), GGUFFile.open(path)
        assert dict(file.metadata) == dict(made.metadata)
        assert list(file.tensors.items()) == list(made.tensors.items())
        for tensor in made.tensors:
            assert np.array_equal(file.raw(tensor), made.tensor(tensor, device).cpu().numpy()), tensor


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_memory_and_file_give_the_same_logits(written: tuple[str, str], dtype: str, device: str) -> None:
    made, read = (loaded(name, dtype=dtype, device=device) for name in (TARGET, written[0]))
    logits = made.logits(IDS)
    assert np.isfinite(logits).all() and np.array_equal(logits, read.logits(IDS))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_method_writes_the_same(written: tuple[str, str], temperature: float, device: str) -> None:
    params = SamplingParams(24, temperature, ignore_eos=True)
    made, read = loaded(TARGET, DRAFT, device=device), loaded(*written, device=device)
    plain = made.generate(IDS, params, method="ar")
    assert len(set(plain.token_ids)) > 12, "it repeats itself"
    for engine, method in ((made, "chain"), (made, "tree"), (read, "ar"), (read, "tree"), (read, "auto")):
        assert engine.generate(IDS, params, method=method).token_ids == plain.token_ids, method


def test_kernels_of_the_kv_types_are_compiled_at_load(device: str) -> None:
    told: list[str] = []
    engine = loaded(TARGET, kv="q8_0/tq3_0", device=device, progress=told.append)
    assert told == ([] if device == "cpu" else ["compiling kernels for q8_0/tq3_0 caches"])
    assert engine.last_statistics is None and len(engine.generate(IDS, SamplingParams(4, ignore_eos=True)).text) > 0


def test_text_goes_in_and_out() -> None:
    engine = loaded(TARGET)
    result = engine.generate("hi", SamplingParams(8, ignore_eos=True))
    assert result.text == engine.tokenizer.decode(result.token_ids) and "[" in result.text


def test_reports_say_synthetic(written: tuple[str, str]) -> None:
    for names in ((TARGET, DRAFT), written):
        engine = loaded(*names)
        assert engine.synthetic
        facts = engine.describe()
        assert "synthetic" in facts["target"] and "synthetic" in facts["draft"]
        assert facts["target"].count("synthetic") == 1
    assert loaded(TARGET).describe()["target_fingerprint"] == loaded(TARGET).describe()["target_fingerprint"]


def test_the_planner_settles_its_context() -> None:
    engine = Engine.load(TARGET, draft=DRAFT, max_context="auto")
    assert engine.describe()["max_context"] == 4096


def test_a_draft_of_another_variant_is_refused() -> None:
    with pytest.raises(FileError, match="use the draft made for it"):
        loaded(TARGET, "synthetic:qwen3.6-27b-dflash")
    with pytest.raises(FileError, match="it is a draft"):
        loaded(DRAFT)


def test_names_stand_for_no_file() -> None:
    assert sources.located("Synthetic:27B-tiny") == TARGET
    assert sources.located("synthetic:27b-tiny-dflash", DRAFTS) == f"{TARGET}-dflash:q8_0"
    with pytest.raises(UsageError, match="draftwood synth"):
        resolve(TARGET)
    with pytest.raises(UsageError, match=r"synthetic:qwen3\.6-27b-4layers"):
        sources.located("synthetic:nobody")


def test_a_target_that_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "machine_memory", lambda: 24 << 30)
    with pytest.raises(DeviceError, match=r"27b takes (47\.7|95\.5) GiB on a CPU and this machine has 24\.0"):
        loaded("synthetic:qwen3.6-27b", device="cpu")


# ------------------------------------------------------------------------------------------------------- the file


def write(path: Path, **options: Any) -> int:
    return write_synthetic(sources.synthetic_model(known.header(TARGET)), path, "cpu", **options)


def test_the_size_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "a.gguf"
    assert write(path, begin=told.append) == path.stat().st_size
    assert told == list(known.header(TARGET).tensors)


def test_a_file_is_replaced_only_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        write(path)
    assert path.read_text() == "mine"
    write(path, force=True)
    assert GGUFFile.open(path).synthetic


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match="is a directory"):
        write(tmp_path)
    with pytest.raises(FileError, match="no such folder"):
        write(tmp_path / "none" / "a.gguf")
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(synthesis.shutil, "disk_usage", lambda path: Usage(0, 0, 1 << 20))
    with pytest.raises(FileError, match=r"takes 0\.00 GB, but .* has only 0\.00 GB left"):
        write(tmp_path / "a.gguf")
    monkeypatch.undo()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthesis, "write_gguf", full)
    with pytest.raises(FileError, match="No space left on device; nothing of it was kept"):
        write(tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def stop(name: str) -> None:
        if name.startswith("blk.2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.gguf", begin=stop)
    assert not list(tmp_path.iterdir())
