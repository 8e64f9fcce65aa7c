"""`bench baseline`: llama-bench's rows from given figures, and the real thing on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from draftwood import Engine
from draftwood.bench.decoding import WARM_UP, sequence_for
from draftwood.bench.suites import baseline
from draftwood.bench.suites.ops import Limits
from draftwood.cli.main import main
from draftwood.errors import UsageError
from draftwood.planner.inventory import synthetic_target

TINY = "synthetic:qwen3.6-27b-tiny"
FACTS = {
    "target": "m.gguf", "architecture": "llama", "device": "cpu", "threads": 2, "dtype": "auto", "weight_form": "int4",
    "kv": "f32",
}  # fmt: skip


def test_names_of_tests_and_depths() -> None:
    assert baseline.parse_test(" PP512 ") == baseline.Test("pp512", True, 512)
    assert baseline.parse_test("tg1") == baseline.Test("tg1", False, 1)
    for text in ("pp", "pp0", "tg-1", "512", "pp70000", "pg5", "", "pp²"):
        with pytest.raises(UsageError, match="--tests names"):
            baseline.parse_test(text)
    assert baseline.check_depth(4096) == 4096
    with pytest.raises(UsageError, match="multiple of 64"):
        baseline.check_depth(100)


def test_the_table_has_the_layout_of_llama_bench() -> None:
    about = baseline.Subject(FACTS, False, 3 << 29, 134_515_008, "CPU")
    runs = [
        baseline.TestRun(baseline.Test("pp512", True, 512), 0, (100.0, 102.0)),
        baseline.TestRun(baseline.Test("tg128", False, 128), 4096, (9.5,)),
    ]
    assert baseline.table(about, runs) == [
        "| model  |     size |   params | backend |          test |           t/s |",
        "| ------ | -------: | -------: | ------- | ------------: | ------------: |",
        "| m.gguf | 1.50 GiB | 134.52 M | CPU     |         pp512 | 101.00 ± 1.41 |",
        "| m.gguf | 1.50 GiB | 134.52 M | CPU     | tg128 @ d4096 |   9.50 ± 0.00 |",
    ]
    line = json.loads(json.dumps(baseline.as_json(about, runs, "abc", 2)))
    assert (line["bench"], line["synthetic"], line["bytes"], line["commit"]) == ("baseline", False, 3 << 29, "abc")
    assert line["tests"][1] == {"test": "tg128", "depth": 4096, "tokens_per_second": 9.5, "deviation": 0.0}
    assert "synthetic" not in "\n".join(baseline.conditions(about, "abc", 2))


def test_operations_are_counted() -> None:
    """By hand, 27B: 24.35 G weights but for the head; 16 layers of 24 heads of 256."""
    target = synthetic_target("synthetic:qwen3.6-27b")
    one = baseline.operations(target, 1, 0)
    head = 248320 * 5120
    per_token = (one - 2 * head - 4 * 16 * 24 * 256) / 1e9
    assert per_token == pytest.approx(48.7, abs=0.05)
    attention = 4 * 16 * 24 * 256
    assert baseline.operations(target, 3, 64) == 3 * (one - 2 * head - attention) + 2 * head + attention * (3 * 64 + 6)


def test_shares_of_the_matrix_rate() -> None:
    limits = Limits("a card", 4e12, 8e14)
    read = baseline.TestRun(baseline.Test("pp512", True, 512), 0, (1000.0, 3000.0), 512 * 10**11)
    runs = [read, baseline.TestRun(baseline.Test("tg128", False, 128), 0, (50.0,))]
    assert read.share(limits) == pytest.approx(25) and runs[1].share(limits) is None
    assert baseline.shares(runs, limits)[-1] == "pp512: 51.2 TFLOP, 25.0 %" and baseline.shares(runs, None) == []
    about = baseline.Subject(FACTS, False, 3 << 29, 134_515_008, "CUDA")
    first, second = baseline.as_json(about, runs, "abc", 2, limits)["tests"]
    assert first["matrix_rate_percent"] == 25 and "operations" not in second


@pytest.mark.parametrize(
    ("device", "ends", "depths"),
    [("cpu", 8192, [0]), ("cuda", 65536, [0, 4096, 16384]), ("cuda", 8192, [0, 4096]), ("cuda", 256, [0])],
)
def test_the_usual_depths_end_with_the_context(device: str, ends: int, depths: list[int]) -> None:
    tests = [baseline.Test("pp2048", True, 2048)]
    assert baseline.depths_for(device, ends, tests, None) == depths
    with pytest.raises(UsageError, match=f"ends at {ends} tokens"):
        baseline.depths_for(device, ends, tests, [ends])


def test_an_engine_s_own_sequence_is_used_where_it_is_long_enough(
    vendored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan has room for one."""
    tests = [baseline.parse_test("tg3"), baseline.parse_test("pp70")]
    assert baseline.capacity(tests, [0, 128]) == 128 + 70 + WARM_UP
    engine = Engine.load(str(vendored / "models" / "l-b.Q4_1.gguf"), max_context=256, device="cpu")
    kept = engine.target.model.new_sequence(engine.kv, 256)
    monkeypatch.setattr(engine, "sequence", kept)
    baseline.measure(engine, tests, [64], 1, lambda label: None)
    assert kept.length > 64
    assert sequence_for(engine, 256) is kept and kept.length == 0
    assert sequence_for(engine, 512).capacity >= 512


def test_a_test_starts_where_the_depth_ends(device: str) -> None:
    engine = Engine.load(TINY, max_context=64, device=device)
    labels: list[str] = []
    tests = [baseline.parse_test("tg3"), baseline.parse_test("pp70")]
    runs = baseline.measure(engine, tests, [0, 128], 2, labels.append)
    assert [made.label for made in runs] == ["tg3", "pp70", "tg3 @ d128", "pp70 @ d128"]
    assert len(labels) == 6 and all(len(made.speeds) == 2 and min(made.speeds) > 0 for made in runs)


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--tests", "pp64,tg2", "--depths", "0, 64", "--repeats", "1", "-ctk", "q8_0"]
    assert main(["bench", "baseline", "--target", TINY, "--device", "cpu", *flags]) == 0
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[-1])
    assert (line["target"], line["synthetic"], line["kv"], line["backend"]) == (TINY, True, "q8_0", "CPU")
    assert [(row["test"], row["depth"]) for row in line["tests"]] == [
        ("pp64", 0),
        ("tg2", 0),
        ("pp64", 64),
        ("tg2", 64),
    ]
    assert "| tg2 @ d64 |" in out.replace("  ", " ") and "synthetic: random weights" in out


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--tests", "pp0"], "--tests names 'pp0'"),
        (["--tests", "tg1,tg1"], "once"),
        (["--depths", "100"], "multiple of 64"),
        (["--depths", "x"], "--depths is 'x'"),
        (["--depths", "8K"], "context ends at 4096"),
        (["--repeats", "0"], "--repeats is 0"),
    ],
)
def test_bad_flags(flags: list[str], fragment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "baseline", "--target", TINY, "--device", "cpu", *flags]) == 2
    assert fragment in capsys.readouterr().err
