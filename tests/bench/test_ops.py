"""What `bench ops` makes of a model, and of times that are given; the times themselves need a GPU."""

from __future__ import annotations

import json

import pytest
import torch

from draftwood.bench.measure import Sample
from draftwood.bench.suites import ops
from draftwood.cli.main import main
from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.models import known


def test_the_cases_are_all_matrices_of_the_model() -> None:
    cases = ops.cases("27b")
    target = known.target("qwen3.6-27b")
    table = target.tensors["token_embd.weight"].nbytes
    matrices = [info for info in target.tensors.values() if len(info.shape) == 2 and info.shape[1] > 4]
    assert sum(case.count * case.gguf_bytes for case in cases) == sum(info.nbytes for info in matrices) - table
    by_name = {(case.name, case.types): case for case in cases}
    assert by_name["ffn_gate+ffn_up", "Q4_K"].outputs == 34816 and by_name["ffn_gate+ffn_up", "Q4_K"].count == 64
    assert ops.is_head(by_name["output", "Q6_K"])


def test_shares_are_bytes_over_time() -> None:
    limits = ops.Limits("a device", bandwidth=1e12, rate=1e14)
    one, two = (ops.Case(name, ((BLOCK_TYPES["Q8_0"], 1024),), 1024, count) for name, count in (("a", 3), ("b", 1)))
    nbytes = 1024 * 1024 * 34 // 32
    runs = [
        ops.CaseRun(one, {16: Sample(2.0, 1.9, 2.2)}, Sample(100.0, 99.0, 101.0), Sample(1.0, 1.0, 1.0)),
        ops.CaseRun(two, {16: Sample(4.0, 4.0, 4.0)}, None, Sample(1.0, 1.0, 1.0)),
    ]
    assert ops.total_microseconds(runs, 16) == 10
    assert ops.share(runs, 16, limits) == pytest.approx(100 * 4 * nbytes / 10e-6 / 1e12)
    assert ops.prefill_share(runs, limits) == pytest.approx(100 * 2 * 1024 * 1024 * ops.PROMPT / 100e-6 / 1e14)
    lines = ops.table(runs, (16,), limits)
    assert "10.0" not in lines[2] and "2.0 us" in lines[2] and lines[-1].endswith("15 %")
    made = ops.as_json(runs, (16,), limits, "m", "fast", "c", 9)
    assert json.loads(json.dumps(made))["pass"]["16"]["microseconds"] == 10.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ops"]) == 2
    assert "no GPU" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert main(["bench", "ops", "--model", "nonsense"]) == 2 and "qwen3.6-27b" in capsys.readouterr().err
    assert main(["bench", "ops", "--rows", "65"]) == 2


@pytest.mark.gpu
def test_a_small_matrix_passes_the_gates(gpu: str) -> None:
    case = ops.Case("a", ((BLOCK_TYPES["Q4_K"], 256), (BLOCK_TYPES["Q6_K"], 64)), 512)
    run = ops.measure(case, (1, 16), True, 1)
    assert run.products[16].middle > 0 and run.prefill is not None
