"""The gate of a feed-forward network: reference by formula, kernel by reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from draftwood.kernels.activation import load_silu_gate, reference
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.rows import assert_rows_are_alone, poisoned


def product(rows: int, width: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gate and up as one matrix gives them: halves of its rows."""
    both = torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(0)) * 5
    both[0, 0], both[-1, -1] = -200.0, 1e4
    gate, up = both.to(device, dtype).split(width, 1)
    return gate, up


def test_reference_by_the_formula() -> None:
    gate, up = product(3, 40, "cpu", torch.float32)
    out = load_silu_gate("cpu")(gate, up)
    torch.testing.assert_close(out.double(), functional.silu(gate.double()) * up.double(), rtol=1e-6, atol=1e-6)
    assert torch.equal(load_silu_gate("cpu")(gate, up, torch.float16), out.half())


def check_gate(device: str, rows: int, width: int, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    from draftwood.kernels.activation import triton

    gate, up = product(rows, width, device, dtype)
    with poisoned():
        out = triton.silu_gate(gate, up, out_dtype)
    tolerance = 4e-6 if out_dtype is torch.float32 else torch.finfo(out_dtype).eps
    expected = reference.silu_gate(gate, up, out_dtype)
    assert out.dtype is out_dtype
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def check_small(device: str) -> None:
    from draftwood.kernels.activation import triton

    check_gate(device, 1, 1, torch.float32, torch.float32)
    check_gate(device, 3, 33, torch.float32, torch.float16)
    check_gate(device, 2, 1025, torch.bfloat16, torch.bfloat16)
    check_gate(device, 2, 2048, torch.float16, torch.float32)
    with pytest.raises(ValueError, match="differ"):
        triton.silu_gate(torch.ones(2, 8, device=device), torch.ones(2, 9, device=device))


def test_kernel_interpreted() -> None:
    run_interpreted("tests.kernels.test_activation", "check_small('cpu')")


@pytest.mark.gpu
def test_kernel_on_a_gpu(gpu: str) -> None:
    check_small(gpu)
    for out_dtype in (torch.float32, torch.float16, torch.bfloat16):
        check_gate(gpu, 64, 17408, torch.float32, out_dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [33, 1536, 17408])
def test_rows_are_alone_on_a_gpu(gpu: str, width: int) -> None:
    gate = load_silu_gate(gpu)
    assert_rows_are_alone(gate, *product(64, width, gpu, torch.float32))
    assert_rows_are_alone(lambda both: gate(*both.chunk(2, 1), torch.float16), torch.randn(64, 2 * width, device=gpu))


CASES = {"17408 to half": (torch.float32, 17408), "1536 from bfloat16": (torch.bfloat16, 1536)}


@pytest.mark.parametrize(("target", "case"), compile_cases(*CASES))
def test_compiles(target: str, case: str) -> None:
    from draftwood.kernels.activation.triton import COLUMNS, _silu_gate

    dtype, width = CASES[case]
    tensors = {"p_gate": dtype, "p_up": dtype, "p_out": torch.float16}
    sizes = {"GATE_STRIDE": 2 * width, "UP_STRIDE": 2 * width, "N": width, "COLUMNS": COLUMNS}
    compile_kernel(_silu_gate, target, tensors | sizes, num_warps=4).check()
