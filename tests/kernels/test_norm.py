"""RMS norm with and without the residual addition: reference by formula, kernel by reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftwood.kernels.norm import load_add_rms_norm, load_rms_norm, reference
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.rows import assert_rows_are_alone, poisoned

EPS = 1e-6


def rows(count: int, width: int, device: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 3).to(device, dtype)


def test_reference_by_the_formula() -> None:
    x, y, weight = rows(3, 40, "cpu"), rows(3, 40, "cpu", seed=1), torch.rand(40)
    total = (x + y).double()
    expected = total * weight / (total.square().mean(1, keepdim=True) + EPS).sqrt()
    stream = x.clone()
    out = load_add_rms_norm("cpu")(stream, y, weight, EPS)
    assert torch.equal(stream, x + y)
    into = torch.empty_like(out)
    assert load_add_rms_norm("cpu")(x.clone(), y, weight, EPS, out=into) is into and torch.equal(into, out)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(load_rms_norm("cpu")(x + y, weight, EPS, torch.bfloat16), out.bfloat16())


def check_norm(device: str, count: int, width: int, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    from draftwood.kernels.norm import triton

    x, y = rows(count, width, device), rows(count, width, device, dtype, seed=1)
    weight = torch.rand(width, device=device)
    tolerance = 1e-6 if out_dtype is torch.float32 else torch.finfo(out_dtype).eps
    stream, expected_stream = x.clone(), x.clone()
    with poisoned():
        out = triton.add_rms_norm(stream, y, weight, EPS, out_dtype)
        plain = triton.rms_norm(y, weight, EPS, out_dtype)
    expected = reference.add_rms_norm(expected_stream, y, weight, EPS, out_dtype)
    assert torch.equal(stream, expected_stream)
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    into = torch.empty_like(out)
    assert triton.add_rms_norm(x.clone(), y, weight, EPS, out_dtype, out=into) is into and torch.equal(into, out)
    torch.testing.assert_close(plain, reference.rms_norm(y, weight, EPS, out_dtype), rtol=tolerance, atol=tolerance)


def check_odd_places(device: str) -> None:
    from draftwood.kernels.norm import triton

    x, y, weight = rows(4, 33, device), rows(4, 70, device, seed=1), torch.rand(40, device=device)[1:34]
    expected = reference.add_rms_norm(x.clone(), y[:, 3:36], weight, EPS)
    torch.testing.assert_close(triton.add_rms_norm(x.clone(), y[:, 3:36], weight, EPS), expected, rtol=1e-6, atol=1e-6)
    heads = y.unflatten(1, (2, 35))[..., :33]
    expected = reference.rms_norm(heads, weight, EPS)
    torch.testing.assert_close(triton.rms_norm(heads, weight, EPS), expected, rtol=1e-6, atol=1e-6)
    for bad in (lambda: triton.add_rms_norm(x, y, weight, EPS), lambda: triton.rms_norm(y, weight, EPS)):
        with pytest.raises(ValueError, match="not"):
            bad()
    with pytest.raises(ValueError, match="contiguous"):
        triton.add_rms_norm(x.clone(), y[:, 3:36], weight, EPS, out=y[:, 3:36])
    with pytest.raises(ValueError, match="16 bytes"):
        triton.add_rms_norm(x[1:], x[:3], weight, EPS)


def check_small(device: str) -> None:
    for count, width, dtype, out_dtype in (
        (1, 1, torch.float32, torch.float32),
        (3, 33, torch.bfloat16, torch.float32),
        (2, 576, torch.float16, torch.float16),
        (5, 1000, torch.float32, torch.bfloat16),
    ):
        check_norm(device, count, width, dtype, out_dtype)
    check_odd_places(device)


def test_kernel_interpreted() -> None:
    run_interpreted("tests.kernels.test_norm", "check_small('cpu')")


@pytest.mark.gpu
def test_kernel_on_a_gpu(gpu: str) -> None:
    check_small(gpu)
    for width in (576, 5120, 17408):
        for out_dtype in (torch.float32, torch.float16, torch.bfloat16):
            check_norm(gpu, 64, width, torch.float32, out_dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [6, 33, 128, 576, 5120])
def test_rows_are_alone_on_a_gpu(gpu: str, width: int) -> None:
    weight = torch.rand(width, device=gpu)
    norm, add_norm = load_rms_norm(gpu), load_add_rms_norm(gpu)
    x, y = rows(64, width, gpu), rows(64, width, gpu, seed=1)
    assert_rows_are_alone(lambda x: norm(x, weight, EPS), x)
    assert_rows_are_alone(lambda x, y: add_norm(x.clone(), y, weight, EPS, torch.float16), x, y)


CASES = {
    "residual 5120": {"p_x": torch.float32, "p_y": torch.float32, "N": 5120},
    "residual 576": {"p_x": torch.float32, "p_y": torch.float32, "N": 576},
    "heads of 128": {"p_x": torch.float32, "p_y": None, "N": 128},
    "half to half, 17408": {"p_x": torch.float16, "p_y": None, "N": 17408},
}


@pytest.mark.parametrize(("target", "case"), compile_cases(*CASES))
def test_compiles(target: str, case: str) -> None:
    from draftwood.kernels.norm.triton import _rms_norm, shape_of

    width = CASES[case]["N"]
    arguments = {"p_weight": torch.float32, "p_out": torch.float16, "eps": EPS, "X_STRIDE": width, "Y_STRIDE": width}
    block, warps = shape_of(width)
    compile_kernel(_rms_norm, target, arguments | CASES[case] | {"BLOCK": block}, num_warps=warps).check()
