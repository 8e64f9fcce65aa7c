"""Bad input to the real command line on real (tiny) models: one sentence, the right exit code, nothing left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from draftwood.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def tiny() -> str:
    return str(ROOT / "tests" / "data" / "models" / "l-b.Q4_1.gguf")


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Runs a command that must be refused, leaving no file behind, and returns its sentence."""

    def run(code: int, *arguments: str | Path) -> str:
        before = set(tmp_path.rglob("*"))
        assert main([str(argument) for argument in arguments]) == code
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("draftwood: error: ") and err.endswith("\n")
        assert err.count("\n") == 1 and len(err) < 300
        assert set(tmp_path.rglob("*")) == before
        return err

    return run


def write_model(path: Path, architecture: str, kind: gguf.GGMLQuantizationType | None = None, heads: int = 4) -> Path:
    """A one-layer GGUF of width 256 whose matrices have the block type `kind`, float32 if None."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(256 // heads)
    writer.add_vocab_size(256)
    matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    for name in ["output_norm", *(f"blk.0.{norm}" for norm in ("attn_norm", "ffn_norm"))]:
        writer.add_tensor(f"{name}.weight", np.ones(256, dtype=np.float32))
    for name in ["token_embd", "output", *(f"blk.0.{matrix}" for matrix in matrices)]:
        if kind is None:
            writer.add_tensor(f"{name}.weight", np.zeros((256, 256), dtype=np.float32))
        else:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            rows = np.zeros((256, 256 // block * size), dtype=np.uint8)
            writer.add_tensor(f"{name}.weight", rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_not_a_model(refused: Refused, tmp_path: Path) -> None:
    assert "no such file" in refused(1, "run", tmp_path / "none.gguf", "-p", "x")
    assert "is a directory" in refused(1, "run", tmp_path, "-p", "x")
    assert "is empty" in refused(2, "run", "", "-p", "x")
    (tmp_path / "text.gguf").write_text("GGUF? No, I am a text.")
    assert "not" in refused(1, "run", tmp_path / "text.gguf", "-p", "x")
    (tmp_path / "empty.gguf").write_bytes(b"")
    refused(1, "run", tmp_path / "empty.gguf", "-p", "x")
    assert "regular file" in refused(1, "run", os.devnull, "-p", "x")


def test_truncated_at_twenty_places(refused: Refused, tmp_path: Path, tiny: str) -> None:
    whole, path, draw = Path(tiny).read_bytes(), tmp_path / "cut.gguf", random.Random(7)
    header = gguf.GGUFReader(tiny).data_offset
    for length in [draw.randrange(header) for _ in range(10)] + [draw.randrange(header, len(whole)) for _ in range(10)]:
        path.write_bytes(whole[:length])
        assert "GGUF" in (err := refused(1, "run", path, "-p", "x", "-n", "2")) or "truncated" in err


def test_unknown_architecture(refused: Refused, tmp_path: Path) -> None:
    path = write_model(tmp_path / "odd.gguf", "perceptron")
    assert "'perceptron' is not a target architecture" in refused(1, "run", path, "-p", "x")


def test_unsupported_block_type(refused: Refused, tmp_path: Path) -> None:
    path = write_model(tmp_path / "odd.gguf", "llama", gguf.GGMLQuantizationType.IQ2_XXS)
    assert "IQ2_XXS" in refused(1, "run", path, "-p", "x")


def test_the_written_model_itself_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise the two tests above could be refused for another reason."""
    path, ids = write_model(tmp_path / "plain.gguf", "llama"), tmp_path / "ids"
    np.array([1, 2], dtype="<i4").tofile(ids)
    assert main(["run", str(path), "--prompt-ids", str(ids), "-n", "2"]) == 0


def test_a_model_without_a_tokenizer(refused: Refused, tmp_path: Path) -> None:
    path = write_model(tmp_path / "plain.gguf", "llama")
    assert "--prompt-ids" in refused(2, "run", path, "-p", "x")


def test_a_kv_type_that_does_not_fit_the_heads(refused: Refused, tmp_path: Path) -> None:
    """Said before the model's weights are read, with the types that fit and their bits at this width."""
    path = write_model(tmp_path / "narrow.gguf", "llama", heads=16)
    error = refused(2, "run", path, "-p", "x", "-ctk", "q4_0")
    assert "q4_0 needs a head width that is a multiple of 32, this model's is 16" in error
    assert "bf16 16, tq4_0 5, tq3_0 5, tq2_0 3." in error


def test_wrong_drafts(refused: Refused, tmp_path: Path, tiny: str) -> None:
    draft = ROOT / "tests" / "data" / "draft" / "d1-a.Q8_0.dflash.gguf"
    assert "hidden size 128" in refused(1, "run", tiny, "-p", "x", "--draft", draft)
    assert "hidden size 128" in refused(1, "doctor", "--target", tiny, "--draft", draft)
    assert "not a draft" in refused(1, "run", tiny, "-p", "x", "--draft", tiny)
    assert "it is a draft" in refused(1, "run", draft, "-p", "x")
    assert "is empty" in refused(2, "run", tiny, "-p", "x", "--draft", "")
    (tmp_path / "cut.gguf").write_bytes(draft.read_bytes()[:-100])
    assert "truncated" in refused(1, "run", tiny, "-p", "x", "--draft", tmp_path / "cut.gguf")
    refused(1, "run", tiny, "-p", "x", "--draft", tmp_path)


def test_wrong_values(refused: Refused, tiny: str) -> None:
    long = "word " * 300
    assert "context holds 64" in refused(2, "run", tiny, "-p", long, "--max-ctx", "64")
    assert "prompt is empty" in refused(2, "run", tiny, "-p", "")
    for budget in ("0", "1000"):
        assert f"--budget is {budget}" in refused(2, "run", tiny, "-p", "x", "--budget", budget)
    assert "f32 32, f16 16, bf16 16, q8_0 8.5" in refused(2, "run", tiny, "-p", "x", "-ctk", "q3_9")
    assert "f32 32, f16 16, bf16 16, q8_0 8.5" in refused(2, "run", tiny, "-p", "x", "-ctv", "q3_9")
    for flag in ("-ctkd", "--draft-type-v"):
        assert "'q3_9'" in refused(2, "run", tiny, "-p", "x", flag, "q3_9")
    for window in ("-1", "1.5", "some"):
        assert f"--draft-swa is '{window}'" in refused(2, "run", tiny, "-p", "x", f"--draft-swa={window}")
    assert "'lookup' has no layers" in refused(2, "run", tiny, "-p", "x", "--draft", "lookup", "--draft-swa", "off")
    assert "'chain', 'tree'" in refused(2, "run", tiny, "-p", "x", "--method", "magic")
    assert "needs a draft" in refused(2, "run", tiny, "-p", "x", "--method", "tree")
    assert "max_context is 99999999" in refused(2, "run", tiny, "-p", "x", "--max-ctx", "99999999")
    assert "draftwood run --help" in refused(2, "run", tiny, "-p", "x", "--frobnicate")


def test_bad_id_files(refused: Refused, tmp_path: Path, tiny: str) -> None:
    ids = tmp_path / "ids"
    ids.write_bytes(b"12345")
    assert "5 bytes" in refused(1, "run", tiny, "--prompt-ids", ids)
    for wrong in (-5, 512, 2**31 - 1):
        np.array([1, wrong, 2], dtype="<i4").tofile(ids)
        assert str(wrong) in refused(1 if wrong < 0 else 2, "run", tiny, "--prompt-ids", ids)
    assert "cannot read" in refused(1, "run", tiny, "--prompt-ids", tmp_path)
    assert "cannot read" in refused(1, "run", tiny, "--prompt-ids", tmp_path / "none")
    if Path("/dev/zero").exists():
        assert "more than any context" in refused(1, "run", tiny, "--prompt-ids", "/dev/zero")


def test_places_where_ids_cannot_go_are_refused_before_generating(refused: Refused, tmp_path: Path, tiny: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "ids")
    for place in (tmp_path, tmp_path / "file" / "ids", tmp_path / "none" / "ids", tmp_path / "dangling", "n" * 300):
        assert "--out-ids" in refused(1, "run", tiny, "-p", "x", "-n", "9", "--out-ids", place)


def test_ids_go_through_a_link_and_into_a_pipe(tmp_path: Path, tiny: str) -> None:
    real, link, pipe = tmp_path / "real", tmp_path / "link", tmp_path / "pipe"
    real.write_bytes(b"old")
    link.symlink_to(real)
    assert main(["run", tiny, "-p", "x", "-n", "2", "--out-ids", str(link)]) == 0
    assert link.is_symlink() and real.stat().st_size >= 12
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert main(["run", tiny, "-p", "x", "-n", "2", "--out-ids", str(pipe)]) == 0
    assert os.read(reader, 1000) == real.read_bytes() and pipe.is_fifo()
    os.close(reader)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(*arguments, code="")`: draftwood in a process of its own, after the statements in `code`.

    A shell that runs the tests in the background hands SIGINT down as ignored, so the child takes it up again. What
    a failed test leaves running is killed.
    """
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, code: str = "", **options: object) -> subprocess.Popen[str]:
        listen = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
        program = f"{listen}\n{code}\nfrom draftwood.cli.main import run\nrun()"
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,  # type: ignore[call-overload]
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("flags", [["--method", "ar"], ["--draft", "lookup"]])
def test_ctrl_c_prints_the_partial_statistics(flags: list[str], tmp_path: Path, tiny: str, start: Start) -> None:
    out_ids = tmp_path / "ids"
    common = ["-p", "hi", "-n", "100000", "--max-ctx", "200000", "--out-ids", str(out_ids)]
    process = start("run", tiny, *common, *flags)
    assert process.stdout is not None and process.stdout.read(3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out.endswith("\n")
    lines = [line for line in err.splitlines() if line.startswith("[dflash] generated ")]
    assert len(lines) == 1 and 0 < int(lines[0].split()[2]) < 100000
    assert "Traceback" not in err and "error" not in err
    assert not list(tmp_path.iterdir())


def test_a_reader_that_leaves_and_a_full_disk(tiny: str, start: Start) -> None:
    process = start("run", tiny, "-p", "hi", "-n", "20000", "--max-ctx", "30000", "--method", "ar")
    assert process.stdout is not None and process.stderr is not None and process.stdout.read(3)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 1 and err == ""
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "draftwood", "run", tiny, "-p", "hi", "-n", "2"]
            ran = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert ran.returncode == 1
        assert ran.stderr == "draftwood: error: cannot use the output: No space left on device.\n"


def test_out_of_memory_is_one_sentence(refused: Refused, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from draftwood.engine.engine import Engine

    def no_room(self: Engine, capacity: int) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Engine, "_new_sequence", no_room)
    assert "--max-ctx" in refused(1, "run", tiny, "-p", "x")


def test_other_failures_are_not_hidden(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from draftwood.engine.engine import Engine

    def bug(self: Engine, capacity: int) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Engine, "_new_sequence", bug)
    with pytest.raises(RuntimeError, match="shapes"):
        main(["run", tiny, "-p", "x"])


def test_characters_that_the_terminal_lacks(tiny: str, start: Start) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = start("run", tiny, "-p", "\u00fc\u4e16", "-n", "200", env=environment)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in err


def test_interrupted_download(tmp_path: Path, start: Start) -> None:
    """Ctrl-C during `pull`: exit 130, pip gone, nothing kept; the next try starts cleanly and says what is wrong."""
    cache, running = tmp_path / "cache", tmp_path / "running"
    pip = tmp_path / "python"
    pip.write_text(f'#!/bin/sh\necho $$ > "{running}.new"; mv "{running}.new" "{running}"\nexec sleep 60\n')
    pip.chmod(0o755)
    environment = {**os.environ, "DRAFTWOOD_CACHE": str(cache)}
    process = start("pull", "demo", code=f"sys.executable = {str(pip)!r}", env=environment)
    while not running.exists():
        assert process.poll() is None
        time.sleep(0.01)
    assert (cache / ".demo.partial").is_dir()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(running.read_text()), 0)
    assert {path.name for path in cache.iterdir()} <= {".demo.lock"}
    pip.write_text('#!/bin/sh\necho "ERROR: the network is down" >&2\nexit 1\n')
    process = start("pull", "demo", code=f"sys.executable = {str(pip)!r}", env=environment)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    last = err.splitlines()[-1]
    assert last.startswith("draftwood: error: could not fetch demo") and "network is down" in last and len(last) < 300
    assert {path.name for path in cache.iterdir()} <= {".demo.lock"}
