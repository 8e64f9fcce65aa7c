"""Bad input to `bench ctx` and `bench guide`: one sentence, before weights are read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from draftwood.cli.main import main
from draftwood.engine.memory import Stock
from draftwood.errors import DeviceError
from tests.cli.fakes import Behaviour

TINY = "synthetic:qwen3.6-27b-tiny"


@pytest.mark.parametrize("command", ["ctx", "guide"])
@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--kv", "q9"], "unknown KV type 'q9'"),
        (["--kv", "q8_0,q8_0"], "once"),
        (["--contexts", "8K"], "the model's context ends at 4,096"),
        (["--contexts", "many"], "--contexts is 'many'"),
        (["--contexts", "32"], "less than 64 to read"),
        (["--contexts", "128,128"], "once"),
        (["--n-gen", "0"], "--n-gen is 0"),
        (["--limit", "soon"], "--limit is 'soon'"),
        (["--round", "bush:3"], "--round names 'bush:3'"),
        (["--draft-quant", "q3"], "no model that is known"),
        (["--draft", "lookup", "--draft-quant", "q8_0"], "give one of the two"),
        (["--target", "x.gguf", "--draft-quant", "q8_0"], "--draft-quant is for synthetic: targets"),
        (["--assume-acceptance", "0.5"], "at least 1"),
    ],
)
def test_bad_flags(
    command: str, flags: list[str], fragment: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", command, "--target", TINY, "--device", "cpu", *flags]) == 2
    assert fragment in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert not behaviour.loads


@pytest.mark.parametrize(
    ("command", "flags", "fragment"),
    [
        ("ctx", ["-ctk", "q8_0", "--kv", "f16"], "give one of the two"),
        ("ctx", ["-ctk", "q9"], "unknown KV type 'q9'"),
        ("guide", ["--vram", "lots"], "--vram is 'lots'"),
    ],
)
def test_bad_flags_of_one(
    command: str, flags: list[str], fragment: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", command, "--target", TINY, "--device", "cpu", *flags]) == 2
    assert fragment in capsys.readouterr().err and not behaviour.loads


def test_a_guide_without_room_loads_nothing(behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--vram", "512MiB", "--contexts", "128", "--device", "cpu"]
    assert main(["bench", "guide", "--target", TINY, *flags]) == 1
    assert "nothing fits" in capsys.readouterr().err and not behaviour.loads


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--draft", "none", "--round", "tree:4"], "there is no draft"),
        (["--draft", f"{TINY}-dflash:q8_0", "--round", "chain:20"], "this draft's chains have 15"),
        (["--assume-acceptance", "3"], "on a GPU only"),
        (["--text", "no/such/file"], "no/such/file"),
    ],
)
def test_what_only_the_loaded_models_tell(flags: list[str], fragment: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--contexts", "64", "--n-gen", "4", "--device", "cpu", *flags]
    assert main(["bench", "ctx", "--target", TINY, *flags]) in (1, 2)
    assert fragment in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ctx", "guide"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_options_reach_the_engine(
    command: str, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a CPU the guide's --vram is what a card would have; an engine there has no limit."""
    loads: list[dict[str, Any]] = []

    def opened(*arguments: Any, **options: Any) -> None:
        loads.append(options)
        raise DeviceError("that is all")

    monkeypatch.setattr("draftwood.cli.bench.measurement.open_engine", opened)
    monkeypatch.setattr("draftwood.engine.loader.pick_device", lambda asked: device)
    monkeypatch.setattr("draftwood.engine.memory.take_stock", lambda: Stock(80 << 30, 70 << 30, 70 << 30, 0))
    flags = ["--weights", "compact", "--token-table", "host", "--vram", "24GiB", "--contexts", "128", "--kv", "q8_0"]
    assert main(["bench", command, "--target", TINY, *flags]) == 1
    assert "that is all" in capsys.readouterr().err
    [load] = loads
    assert (load["weights"], load["token_table"]) == ("compact", "host")
    assert load["vram"] == (None if (command, device) == ("guide", "cpu") else "24GiB")


@pytest.mark.parametrize("command", ["ctx", "guide"])
def test_a_missing_matplotlib_is_said_before_the_model_is_loaded(
    command: str, behaviour: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["bench", command, "--target", TINY, "--out", str(tmp_path / "out")]) == 2
    assert "draftwood[plots]" in capsys.readouterr().err
    assert not behaviour.loads and not (tmp_path / "out").exists()
