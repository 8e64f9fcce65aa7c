"""Synthetic models on the command line: named wherever a model is named, written by `draftwood synth`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from draftwood.cli.main import main
from draftwood.formats.gguf import GGUFFile

TINY = "synthetic:qwen3.6-27b-tiny"
Captured = pytest.CaptureFixture[str]


def error_of(capsys: Captured) -> str:
    """What was printed on stderr, which must be one short line."""
    out, err = capsys.readouterr()
    assert not out and err.startswith("draftwood: error: ") and err.count("\n") == 1 and len(err) < 300
    return err


@pytest.mark.parametrize("name", ["qwen3.6-27b-tiny", f"{TINY}-dflash:q4_k_m"])
def test_a_model_is_written(name: str, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "model.gguf"
    assert main(["synth", name, "--out", str(path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert name.removeprefix("synthetic:") in out and "synthetic" in out and f"{path.stat().st_size:,} bytes" in out
    assert GGUFFile.open(path).synthetic
    assert main(["synth", name, "--out", str(path)]) == 2
    assert "--force replaces it" in error_of(capsys)
    assert main(["synth", name, "--out", str(path), "--force"]) == 0


def test_bad_arguments_of_synth(tmp_path: Path, capsys: Captured) -> None:
    path = str(tmp_path / "model.gguf")
    assert main(["synth", "nobody", "--out", path]) == 2
    assert "synthetic:qwen3.6-27b-4layers" in error_of(capsys)
    assert main(["synth", "qwen3.6-27b-tiny"]) == 2
    assert "--out" in error_of(capsys)
    assert main(["synth", "qwen3.6-27b-tiny", "--out", str(tmp_path / "none" / "model.gguf")]) == 1
    assert "no such folder" in error_of(capsys)
    assert not list(tmp_path.iterdir())


def test_it_runs_and_says_what_it_is(capsys: Captured) -> None:
    assert main(["run", TINY, "--draft", f"{TINY}-dflash", "-p", "hi", "-n", "6", "--method", "tree"]) == 0
    out, err = capsys.readouterr()
    assert "[" in out
    assert f"{TINY} is synthetic: its weights are random" in err and "[dflash] generated" in err


def test_the_doctor_and_the_bench_say_it_too(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "model.gguf"
    assert main(["synth", TINY, "--out", str(path)]) == 0
    capsys.readouterr()
    assert main(["doctor", "--target", str(path), "--draft", f"{TINY}-dflash:q4_k_m", "--device", "cpu"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(row.split()[1:] == ["model.gguf", "(synthetic)"] for row in rows if row.startswith("target  "))
    assert rows[-1] == "the draft fits the target"
    assert main(["bench", "passes", "--target", TINY, "--forms", "auto", "--rows", "1", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert f"target {TINY} (qwen35)" in out and json.loads(out.splitlines()[-1])["target"] == TINY


@pytest.mark.parametrize(
    "flags",
    [
        ["passes", "--forms", "auto,float32", "--rows", "1", "--repeats", "1"],
        ["ctx", "--kv", "q8_0,f16", "--contexts", "64", "--n-gen", "4", "--round", "ar"],
        ["guide", "--kv", "q8_0,f16", "--contexts", "64", "--n-gen", "4", "--round", "ar", "--vram", "2GiB"],
    ],
    ids=lambda flags: str(flags[0]),
)
def test_a_command_with_several_engines_says_it_once(flags: list[str], capsys: Captured) -> None:
    assert main(["bench", flags[0], "--target", TINY, "--device", "cpu", *flags[1:]]) == 0
    assert capsys.readouterr().err.count("is synthetic: its weights are random") == 1


def test_a_plan(capsys: Captured) -> None:
    flags = ["--card", "3090", "--json"]
    assert main(["plan", "synthetic:qwen3.6-27b", *flags]) == 0
    synthetic = json.loads(capsys.readouterr().out)
    assert main(["plan", "qwen3.6-27b", *flags]) == 0
    named = json.loads(capsys.readouterr().out)
    assert synthetic["model"] == "synthetic:qwen3.6-27b" and synthetic["rows"] == named["rows"]
    assert main(["plan", "synthetic:27b", "--draft", "synthetic:27b-dflash:q4_k_m", "--card", "3090"]) == 0
    out = capsys.readouterr().out
    assert "synthetic weights in the shapes of Qwen3.6-27B" in out and "synthetic q4_k_m draft" in out
    assert main(["plan", "synthetic:27b", "--draft", "synthetic:27b-tiny-dflash", "--card", "3090"]) == 1
    assert "use the draft made for it" in error_of(capsys)


def test_other_commands_send_their_users_on(capsys: Captured) -> None:
    assert main(["pull", TINY]) == 2
    assert "draftwood synth" in error_of(capsys)
    assert main(["run", "synthetic:nobody", "-p", "x"]) == 2
    assert "no model that is known" in error_of(capsys)
