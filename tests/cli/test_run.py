"""`draftwood run`: what reaches the engine, and what comes out where."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from draftwood.cli.main import main
from tests.cli.fakes import Behaviour, FakeEngine


def test_text_to_stdout_statistics_to_stderr(
    target: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "tree", "--budget", "22", "--temp", "0.8", "--seed", "3", "-n", "5"]
    assert main(["run", target, "--draft", "lookup", "-p", "abc", *flags]) == 0
    captured = capsys.readouterr()
    assert captured.out == "defgh\n"
    assert "[dflash] generated 5 tokens" in captured.err and "draft steps" in captured.err
    [request] = behaviour.requests
    assert request["prompt"] == list(b"abc")
    assert (request["method"], request["budget"], request["chain_seed"]) == ("tree", 22, None)
    params = request["params"]
    assert (params.max_tokens, params.temperature, params.seed) == (5, 0.8, 3)


def test_an_assumed_acceptance_reaches_the_engine(target: str, behaviour: Behaviour) -> None:
    assert main(["run", target, "-p", "abc", "--assume-acceptance", "4.93"]) == 0
    assert main(["bench", "he", "--target", target, "--assume-acceptance", "3"]) == 0
    assert [load["assume_acceptance"] for load in behaviour.loads] == [4.93, 3.0]


def test_only_what_was_said_overrules_the_engine(target: str, behaviour: Behaviour) -> None:
    assert main(["run", target, "-p", "abc"]) == 0
    assert behaviour.loads == [
        {"target": target, "draft": None, "max_context": 4096, "device": "auto", "dtype": "auto"}
    ]


@pytest.mark.parametrize(
    ("flags", "kv"),
    [
        (["-ctk", "q8_0"], "q8_0/q8_0"),
        (["-ctv", "f16"], "f16/f16"),
        (["-ctk", "Q8", "-ctv", "f16"], "q8_0/f16"),
        (["--cache-type-k", "bf16", "--cache-type-v", "f32"], "bf16/f32"),
    ],
)
def test_kv_types(flags: list[str], kv: str, target: str, behaviour: Behaviour) -> None:
    assert main(["run", target, "-p", "abc", *flags]) == 0
    assert behaviour.loads[0]["kv"] == kv


@pytest.mark.parametrize(
    ("flags", "kv"),
    [
        (["-ctkd", "turbo4"], "tq4_0/tq4_0"),
        (["-ctvd", "F16"], "f16/f16"),
        (["--draft-type-k", "q8_0", "--draft-type-v", "q4_0"], "q8_0/q4_0"),
    ],
)
@pytest.mark.parametrize("command", [["run", "-p", "abc"], ["chat"], ["bench", "he", "--method", "ar"]])
def test_the_draft_s_own_kv_types(
    command: list[str], flags: list[str], kv: str, target: str, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    place = ["--target", target] if command[0] == "bench" else [target]
    main([*command, *place, *flags])
    assert behaviour.loads[0]["draft_kv"] == kv


@pytest.mark.parametrize(("value", "context"), [("auto", "auto"), ("AUTO", "auto"), ("512", 512)])
@pytest.mark.parametrize("command", [["run", "-p", "abc"], ["chat"], ["bench", "he", "--method", "ar"]])
def test_context(
    command: list[str],
    value: str,
    context: str | int,
    target: str,
    behaviour: Behaviour,
    cached_registry: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    place = ["--target", target] if command[0] == "bench" else [target]
    assert main([*command, *place, "--max-ctx", value]) == 0
    assert behaviour.loads[0]["max_context"] == context
    said = "--max-ctx auto: room for 64 tokens, KV type f32" in capsys.readouterr().err
    assert said == (command[0] == "run" and context == "auto")


def test_the_planner_chooses_the_context(vendored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real engine: this model was made for 4,096 tokens, which fit any machine that can test it."""
    assert main(["run", str(vendored / "models" / "l-b.Q4_1.gguf"), "-p", "abc", "-n", "2", "--max-ctx", "auto"]) == 0
    assert "room for 4,096 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["run", "-p", "abc"], ["chat"]])
@pytest.mark.parametrize(("value", "window"), [("2048", 2048), ("0", 0), ("off", 0), ("OFF", 0)])
def test_the_draft_s_window(
    command: list[str],
    value: str,
    window: int,
    target: str,
    behaviour: Behaviour,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main([*command, target, "--draft", target, "--draft-swa", value]) == 0
    assert behaviour.loads[0]["draft_window"] == window


@pytest.mark.parametrize(
    "command",
    [
        ["run", "TARGET", "-p", "abc"],
        ["chat", "TARGET"],
        ["bench", "he", "--target", "TARGET"],
        ["doctor", "--target", "TARGET"],
        ["demo"],
    ],
)
def test_memory_options(
    command: list[str],
    target: str,
    behaviour: Behaviour,
    cached_registry: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    flags = ["--weights", "compact", "--token-table", "host", "--vram", "24GiB"]
    assert main([target if word == "TARGET" else word for word in command] + flags) == 0
    load = behaviour.loads[0]
    assert (load["weights"], load["token_table"], load["vram"]) == ("compact", "host", "24GiB")


def test_a_planned_engine_says_what_it_takes(
    target: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "memory", SimpleNamespace(summary=lambda: "memory: 1 GiB planned"))
    assert main(["run", target, "-p", "abc"]) == 0
    assert "memory: 1 GiB planned" in capsys.readouterr().err


def test_draft_options(target: str, behaviour: Behaviour) -> None:
    flags = ["--draft", target, "--draft-block", "8", "--draft-causal", "all", "--chain-seed", "full"]
    assert main(["run", target, "-p", "abc", *flags]) == 0
    load = behaviour.loads[0]
    assert (load["draft"], load["draft_block"], load["draft_causal"]) == (target, 8, "all")
    assert behaviour.requests[0]["chain_seed"] == "full"


def test_chat_template(target: str, behaviour: Behaviour) -> None:
    assert main(["run", target, "-p", "hi", "--chat"]) == 0
    assert bytes(behaviour.requests[0]["prompt"]) == b"<user>hi<assistant>"


def test_chat_without_a_template(target: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour.has_template = False
    assert main(["run", target, "-p", "hi", "--chat"]) == 2
    assert "no chat template" in capsys.readouterr().err


def test_id_files(target: str, behaviour: Behaviour, tmp_path: Path) -> None:
    prompt, out = tmp_path / "prompt.i32", tmp_path / "out.i32"
    np.array([5, 70000, 7], dtype="<i4").tofile(prompt)
    assert main(["run", target, "--prompt-ids", str(prompt), "--out-ids", str(out), "-n", "2"]) == 0
    assert behaviour.requests[0]["prompt"] == [5, 70000, 7]
    assert np.fromfile(out, dtype="<i4").tolist() == [5, 70000, 7, 100, 101]
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", "prompt.i32", "out.i32"}


@pytest.mark.parametrize(
    ("content", "fragment"),
    [(b"", "0 bytes"), (b"12345", "5 bytes"), (b"\xff\xff\xff\xff", "holds -1")],
)
def test_bad_id_files(
    content: bytes,
    fragment: str,
    target: str,
    behaviour: Behaviour,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "ids"
    path.write_bytes(content)
    assert main(["run", target, "--prompt-ids", str(path)]) == 1
    assert fragment in capsys.readouterr().err
    assert main(["run", target, "--prompt-ids", str(tmp_path / "none")]) == 1
    assert not behaviour.loads


def test_interrupt(target: str, behaviour: Behaviour, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour.interrupt_after = 4
    out = tmp_path / "out.i32"
    assert main(["run", target, "-p", "abc", "--method", "ar", "--out-ids", str(out)]) == 130
    captured = capsys.readouterr()
    assert captured.out == "defg\n"
    assert "[dflash] generated 4 tokens" in captured.err
    assert not out.exists()
