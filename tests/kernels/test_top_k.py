"""Top-k with log-sum-exp: reference by hand, kernel by reference, ids exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from draftwood.kernels.top_k import load_top_k, reference
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.rows import assert_rows_are_alone, poisoned

INF = math.inf


def test_reference_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, -INF, 2.0], [-0.0, -1.0, 0.0, -INF, -INF]])
    values, ids, lse = load_top_k("cpu")(logits, 4, 2.0)
    assert ids.tolist() == [[1, 2, 4, 0], [0, 2, 1, 3]]
    assert values.tolist() == [[1.5, 1.5, 1.0, 0.5], [0.0, 0.0, -0.5, -INF]]
    assert lse[0].item() == pytest.approx(math.log(2 * math.exp(1.5) + math.exp(1) + math.exp(0.5)), abs=1e-6)


def hard_rows(width: int, dtype: torch.dtype, device: str) -> Tensor:
    """Rows that a search may get wrong: ties everywhere, ascending, masked, few or none alive, far from zero."""
    generator = torch.Generator().manual_seed(width)
    plain = torch.randn(3, width, generator=generator) * 4
    ties = torch.randint(-2, 3, (2, width), generator=generator).float()
    ascending = torch.arange(width).float() / width
    masked = plain[0].masked_fill(torch.rand(width, generator=generator) < 0.9, -INF)
    few = torch.full((width,), -INF)
    few[width // 2] = -3.0
    zeros = torch.where(torch.rand(width, generator=generator) < 0.5, 0.0, -0.0)
    others = [ascending, -ascending, masked, few, torch.full((width,), -INF), zeros, plain[1] - 1e4, plain[2] + 3e4]
    return torch.cat((plain, ties, torch.stack(others))).to(device, dtype)


def check_top_k(device: str, width: int, k: int, dtype: torch.dtype, temperature: float = 1.0) -> None:
    from draftwood.kernels.top_k import triton

    logits = hard_rows(width, dtype, device)
    with poisoned():
        values, ids, lse = triton.top_k(logits, k, temperature)
    # On the CPU, as a GPU's own sort may tell the two zeros apart.
    expected = [part.to(device) for part in reference.top_k(logits.cpu(), k, temperature)]
    assert torch.equal(ids, expected[1]), f"{width} {k} {dtype}"
    torch.testing.assert_close(values, expected[0], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(lse, expected[2], rtol=1e-6, atol=3e-6)


def check_small(device: str) -> None:
    from draftwood.kernels.top_k import triton

    check_top_k(device, 8, 8, torch.float32)
    check_top_k(device, 129, 3, torch.float16)
    check_top_k(device, 1000, 8, torch.bfloat16, 0.7)
    check_top_k(device, 5001, 1, torch.float32, 2.0)
    check_top_k(device, 9000, 7, torch.float32)
    logits = torch.randn(4, 700, device=device)
    assert torch.equal(triton.top_k(logits[:, 3:], 5)[1], reference.top_k(logits[:, 3:], 5)[1])
    logits[:, ::3] = torch.nan
    ids = triton.top_k(logits, 8)[1]
    assert all(len(set(row)) == 8 and 0 <= min(row) <= max(row) < 700 for row in ids.tolist())
    for k in (0, 9):
        with pytest.raises(ValueError, match="k is 1 to 8 for rows of 700"):
            triton.top_k(logits, k)


def test_kernel_interpreted() -> None:
    run_interpreted("tests.kernels.test_top_k", "check_small('cpu')")


@pytest.mark.gpu
@pytest.mark.parametrize("width", [49152, 151936, 248320])
def test_kernel_on_a_gpu(gpu: str, width: int) -> None:
    check_small(gpu)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for k in (1, 4, 8):
            check_top_k(gpu, width, k, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [50_257, 248_320])
def test_rows_are_alone_on_a_gpu(gpu: str, width: int, dtype: torch.dtype) -> None:
    top_k, logits = load_top_k(gpu), torch.randn(64, width, device=gpu, dtype=dtype)
    assert_rows_are_alone(lambda x: torch.column_stack(top_k(x, 8, 0.6)).double(), logits)


CASES = {
    "8 of 248320 float32": (torch.float32, 248_320, 8),
    "8 of 248320 float16": (torch.float16, 248_320, 8),
    "1 of 49152 bfloat16": (torch.bfloat16, 49_152, 1),
}


@pytest.mark.parametrize(("target", "case"), compile_cases(*CASES))
def test_compiles(target: str, case: str) -> None:
    from draftwood.kernels.top_k import triton

    dtype, width, k = CASES[case]
    count = -(-width // triton.GROUP)
    common = {"p_logits": dtype, "p_peak": torch.float32, "p_sum": torch.float32, "inverse": 1.0}
    common |= {"STRIDE": width, "V": width, "COUNT": count, "GROUP": triton.GROUP}
    compile_kernel(triton._groups, target, common | {"GROUPS": triton.GROUPS}, num_warps=4).check()
    results = {"p_value": torch.float32, "p_id": torch.int64, "p_lse": torch.float32}
    sizes = {"K": k, "BLOCK": 1 << (count - 1).bit_length(), "CHOSEN": 1 << (k - 1).bit_length()}
    compile_kernel(triton._search, target, common | results | sizes, num_warps=4).check()
