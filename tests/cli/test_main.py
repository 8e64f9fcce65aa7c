"""Errors are one sentence with the right exit code; help needs no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from draftwood.cli import options
from draftwood.cli.main import main
from draftwood.errors import DraftMismatchError
from tests.cli.fakes import Behaviour

ROOT = Path(__file__).resolve().parents[2]
SUBCOMMANDS = ("run", "chat", "pull", "plan", "bench", "doctor", "demo", "synth", "train")


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed on stderr, which must be one short line."""
    err = capsys.readouterr().err
    assert err.startswith("draftwood: error: ") and err.endswith("\n")
    assert err.count("\n") == 1 and len(err) < 300
    return err


@pytest.mark.parametrize(
    ("flags", "code", "fragment"),
    [
        (["--budget", "0"], 2, "from 1 to 63"),
        (["--budget", "1000"], 2, "from 1 to 63"),
        (["-ctk", "q9"], 2, "f32 32, f16 16, bf16 16, q8_0 8.5"),
        (["--cache-type-v", "q9"], 2, "unknown KV type 'q9'"),
        (["--method", "magic"], 2, "'auto', 'ar', 'chain', 'tree'"),
        (["-n", "0"], 2, "--n-gen is 0"),
        (["-n", "many"], 2, "--n-gen"),
        (["--temp", "-1"], 2, "temperature is -1.0"),
        (["--temp", "nan"], 2, "temperature is nan"),
        (["--seed", "-1"], 2, "seed is -1"),
        (["--max-ctx", "1"], 2, "--max-ctx is 1"),
        (["--max-ctx", "many"], 2, "--max-ctx is 'many', but must be a number of tokens, or auto"),
        (["--max-ctx", "9" * 5000], 2, "a number of tokens"),
        (["--max-ctx", "-1"], 2, "a number of tokens"),
        (["--device", "abacus"], 2, "'auto', 'cpu', 'cuda'"),
        (["--draft", "nobody"], 2, "demo, lookup"),
        (["--draft", "no/such.gguf"], 1, "no such file: no/such.gguf"),
        (["--prompt-ids", "ids.bin"], 2, "either with -p"),
        (["--out-ids", "no/such/folder/ids.bin"], 1, "no such folder"),
        (["--frobnicate"], 2, "--frobnicate"),
    ],
)
def test_bad_flags_of_run(
    flags: list[str],
    code: int,
    fragment: str,
    target: str,
    behaviour: Behaviour,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", target, "-p", "x", *flags]) == code
    assert fragment in one_error(capsys)
    assert not behaviour.loads, "the model was loaded before the flags were checked"


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["run", "missing.gguf", "-p", "x"], 1, "no such file: missing.gguf"),
        (["run", "nobody", "-p", "x"], 2, "neither a file nor a known name"),
        (["run", "gopher://models/x.gguf", "-p", "x"], 2, "is an address"),
        (["run", "hf:owner/repo", "-p", "x"], 2, "does not name a file"),
        (["run"], 2, "Missing argument"),
        (["fly"], 2, "No such command"),
        (["bench", "he", "--method", "ar", "--compare", "ar,tree"], 2, "one of the two"),
        (["bench", "he", "--compare", "ar,magic"], 2, "'magic'"),
        (["bench", "he", "--compare", "ar,ar"], 2, "once"),
        (["bench", "he", "--ddtree-budget", "64"], 2, "from 1 to 63"),
        (["bench", "he", "--ddtree-temp", "0"], 2, "above 0"),
        (["bench", "he", "--ddtree-temp", "nan"], 2, "above 0"),
        (["doctor", "--draft", "lookup"], 2, "--target"),
        (["pull", "nobody"], 2, "known names"),
        (["pull", "synthetic:qwen3.6-27b"], 2, "draftwood synth"),
        (["synth", "nobody", "--out", "x.gguf"], 2, "synthetic:qwen3.6-27b-4layers"),
        (["synth", "qwen3.6-27b"], 2, "--out"),
    ],
)
def test_bad_arguments(
    arguments: list[str], code: int, fragment: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    assert fragment in one_error(capsys)


def test_engine_errors_keep_their_code(target: str, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour.failure = DraftMismatchError("the draft was made\nfor another target " + "x" * 400)
    assert main(["run", target, "-p", "x"]) == 1
    assert "for another target" in one_error(capsys)


def test_budget_limit_is_the_engines() -> None:
    from draftwood.decode.tree import MAX_BUDGET

    assert options.MAX_BUDGET == MAX_BUDGET


def test_method_names_are_the_engines() -> None:
    from draftwood.engine.config import CAUSAL, DEVICES, DTYPES, METHOD_NAMES

    pairs = [
        (options.MethodName, METHOD_NAMES),
        (options.DraftCausal, CAUSAL),
        (options.DeviceName, DEVICES),
        (options.Dtype, DTYPES),
    ]
    for ours, engines in pairs:
        assert [member.value for member in ours] == list(engines)


def test_no_arguments_print_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in SUBCOMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("draftwood ")


def test_exit_codes_of_the_process(target: str) -> None:
    def code(*arguments: str) -> int:
        command = [sys.executable, "-m", "draftwood", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode

    assert code("--help") == 0
    assert code("run", target, "-p", "x", "--budget", "1000") == 2
    assert code("run", "missing.gguf", "-p", "x") == 1


def test_interrupt_prints_partial_statistics(target: str) -> None:
    # A shell that runs the tests in the background hands SIGINT down as ignored.
    listen = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [
        sys.executable,
        "-c",
        f"{listen}; runpy.run_module('tests.cli.fakes', run_name='__main__')",
        "run",
        target,
        "-p",
        "x",
        "-n",
        "5000",
        "--method",
        "ar",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.read(3), "nothing was streamed"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "[dflash] generated" in err and "Traceback" not in err
    assert 0 < len(out) < 4000
