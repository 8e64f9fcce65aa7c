"""What `bench ops` times beside the matrices: which kernels there are, that each is right and callable (interpreted, at
small sizes), and what is made of times that are given."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from draftwood.bench.measure import Sample
from draftwood.bench.suites import kernel_cases, kernels
from draftwood.bench.suites.ops import Limits
from draftwood.cli.main import main
from draftwood.errors import DraftwoodError
from draftwood.models import known
from draftwood.models.registry import architecture
from draftwood.models.spec import DeltaSpec
from tests.kernels.interpreting import run_interpreted

TIMED = {
    "operand.add_norm", "operand.silu_gate", "operand.gated_norm", "operand.gate", "rope.rotate_heads",
    "embedding.embed", "top_k", "gumbel.argmax", "gumbel.draw", "attention.attend_tree", "kv_store.store_rows",
    "kv_store.commit_rows", "delta_rule.stage_nodes", "delta_rule.tree_rule", "delta_rule.commit_nodes",
    "draft_tree.grow", "draft_tree.walk", "attention.attend_granules", "delta_rule.prefill",
}  # fmt: skip


def small(device: str) -> kernel_cases.Setting:
    """Every kernel at sizes that an interpreter can bear."""
    target = known.target("qwen3.6-27b")
    spec = replace(
        architecture(target).read_spec(target),
        layers=4, hidden=256, ffn=288, vocab=1000, heads=2, kv_heads=1, head_dim=64, rope_width=16,
        attention=(False, False, True, True), delta=DeltaSpec(1, 2, 16),
    )  # fmt: skip
    return kernel_cases.Setting(spec, device, contexts=(40,), depths=(0, 64), prompt=64, calls=2, gated=4)


def check_gates(device: str, *names: str) -> None:
    """Gates are green, and a pass of two rows can be made; one case of each kernel."""
    first = {case.name: case for case in reversed(kernel_cases.cases_of(small(device))) if case.name.startswith(names)}
    assert first
    for case in first.values():
        kernel = case.make()
        kernels.check(case, kernel)
        for rows in (2,) if case.when == "pass" else (0,):
            work = kernel.work(rows)
            assert work.moved > 0 and len(work.calls) >= 1
            work.calls[-1]()


@pytest.mark.parametrize(
    "names",
    [
        "'attention', 'kv_store', 'rope', 'embedding'",
        pytest.param("'operand', 'top_k'", marks=pytest.mark.slow),
        pytest.param("'gumbel', 'draft_tree'", marks=pytest.mark.slow),
        pytest.param("'delta_rule'", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_passes_its_gate_interpreted(names: str) -> None:
    run_interpreted("tests.bench.test_kernels", f"check_gates('cpu', {names})")


def test_the_cases_are_the_kernels_of_a_27b() -> None:
    cases = kernel_cases.cases("27b")
    assert {case.name for case in cases} == TIMED
    shapes = {(case.name, case.shape) for case in cases}
    assert len(shapes) == len(cases)
    assert {
        ("operand.add_norm", "5120 of 17408"), ("operand.silu_gate", "17408"), ("operand.gated_norm", "48 x 128"),
        ("operand.gate", "24 x 256"), ("rope.rotate_heads", "24 + 4 x 256"), ("top_k", "8 of 248320 float16"),
        ("attention.attend_tree", "24/4 x 256 q8_0 at 128K"), ("kv_store.commit_rows", "16 layers q8_0"),
        ("delta_rule.commit_nodes", "48 layers"), ("draft_tree.grow", "63 of 15 x 8"),
        ("attention.attend_granules", "2048 at 64K, q8_0"),
    } <= shapes  # fmt: skip
    assert {case.name for case in cases if case.when == "prompt"} == {"attention.attend_granules", "delta_rule.prefill"}


def test_a_dense_model_has_no_delta_rule() -> None:
    setting = small("cpu")
    dense = replace(setting, spec=replace(setting.spec, delta=None, gated=False, attention=(True,) * 4))
    names = {case.name for case in kernel_cases.cases_of(dense)}
    assert TIMED - names == {name for name in TIMED if name.startswith("delta_rule")} | {
        "operand.gated_norm", "operand.gate"
    }  # fmt: skip


def given_kernel(error: float) -> kernel_cases.Kernel:
    return kernel_cases.Kernel(lambda: error, lambda rows: kernel_cases.Work([], 1))


def test_a_red_gate_shows_no_speed() -> None:
    case = kernel_cases.Case("a", "b", "c", lambda: given_kernel(1.5))
    with pytest.raises(DraftwoodError, match=r"a b is off by 1\.5 times what is allowed; no speed"):
        kernels.check(case, case.make())
    with pytest.raises(DraftwoodError, match="nan"):
        kernels.check(case, given_kernel(float("nan")))


def given_run(name: str, when: str, times: dict[int, float], moved: int, operations: int = 0) -> kernels.KernelRun:
    case = kernel_cases.Case(name, "a shape", "something", lambda: pytest.fail("is not made"), when)
    return kernels.KernelRun(
        case,
        {n: Sample(time, 0.9 * time, 1.1 * time) for n, time in times.items()},
        dict.fromkeys(times, moved),
        dict.fromkeys(times, operations),
    )


def test_shares_are_bytes_or_operations_over_time() -> None:
    limits = Limits("a device", bandwidth=1e12, rate=1e14)
    runs = [
        given_run("one", "pass", {1: 2.0, 16: 4.0}, 1_000_000),
        given_run("two", "round", {0: 5.0}, 1000),
        given_run("three", "prompt", {0: 100.0}, 1000, 5_000_000_000),
    ]
    lines = kernels.table(runs, (1, 16), limits)
    by_name = {line.split()[0]: line for line in lines if line}
    assert "2.0 us 50 %" in by_name["one"] and "4.0 us 25 %" in by_name["one"] and " 1.00 " in by_name["one"]
    assert "5.0 us" in by_name["two"] and "%" not in by_name["two"]
    assert "100.0 us 50 %" in by_name["three"] and "matrix rate" in by_name["three"]
    assert lines[-1].endswith("20 %")
    made = json.loads(json.dumps(kernels.as_json(runs, limits)))
    assert made[0]["microseconds"] == {"1": 2.0, "16": 4.0} and made[0]["share_percent"] == {"1": 50.0, "16": 25.0}
    assert made[1]["operations"] == {} and made[2]["operations"] == {"0": 5_000_000_000}
    assert made[2]["share_of"] == "matrix rate" and made[2]["share_percent"] == {"0": 50.0}
    assert len(kernels.table(runs[:1], (1, 16), limits)) == 5 and len(kernels.table(runs[1:], (1, 16), limits)) == 6


def test_only_names_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ops", "--only", "nonsense"]) == 2
    said = capsys.readouterr().err
    assert "operand.add_norm" in said and "ffn_gate+ffn_up" in said and said.count("\n") == 1
    assert main(["bench", "ops", "--only", "delta_rule.prefill", "--no-prefill"]) == 2
    assert "no name begins so" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["bench", "ops", "--only", "operand"]) == 2 and "no GPU" in capsys.readouterr().err


@pytest.mark.gpu
def test_every_kernel_is_timed_at_small_sizes(gpu: str) -> None:
    runs = [kernels.measure(case, (1, 9), 1) for case in kernel_cases.cases_of(small(gpu))]
    assert {run.case.name for run in runs} == TIMED
    assert all(time.middle > 0 for run in runs for time in run.times.values())
    assert kernels.table(runs, (1, 9), Limits("a device", 1e12, 1e14))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["operand.silu_gate", "rope", "gumbel.argmax", "delta_rule.tree_rule"])
def test_a_kernel_of_the_27b_is_timed(gpu: str, name: str) -> None:
    case = next(case for case in kernel_cases.cases("27b") if case.name.startswith(name))
    run = kernels.measure(case, (1, 16), 1)
    assert run.times[16].middle > 0 and run.moved[16] > run.moved[1]
