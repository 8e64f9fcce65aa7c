"""Batched decode attention: the reference by its definition, the kernel by the reference (interpreted, or on a GPU)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as functional

from draftwood.kernels.batched_attention import attend_rows, reference


def inputs(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    q = torch.randn(5, 6, 32, dtype=dtype, device=device)
    keys, values = (torch.randn(5, 2, 200, 32, dtype=dtype, device=device) for _ in range(2))
    lengths = torch.tensor([1, 63, 64, 65, 200], device=device, dtype=torch.int32)
    for row, length in enumerate(lengths.tolist()):
        keys[row, :, length:] = torch.nan
        values[row, :, length:] = torch.nan
    return q, keys, values, lengths


def test_reference_is_attention_over_the_live_rows() -> None:
    q, keys, values, lengths = inputs("cpu", torch.float32)
    out = reference.attend_rows(q, keys, values, lengths, 0.2)
    for row, length in enumerate(lengths.tolist()):
        expected = functional.scaled_dot_product_attention(
            q[row].unsqueeze(1), keys[row, :, :length], values[row, :, :length], scale=0.2, enable_gqa=True
        )
        torch.testing.assert_close(out[row], expected.squeeze(1))


def check_kernel(device: str, dtype: torch.dtype, tolerance: float) -> None:
    from draftwood.kernels.batched_attention import triton

    q, keys, values, lengths = inputs(device, dtype)
    out = triton.attend_rows(q, keys, values, lengths, 0.2)
    expected = reference.attend_rows(q, keys, values, lengths, 0.2)
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def test_kernel_interpreted() -> None:
    pytest.importorskip("triton")
    code = (
        "import torch; from tests.kernels.test_batched_attention import check_kernel; "
        "check_kernel('cpu', torch.float32, 1e-5)"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)


@pytest.mark.gpu
def test_kernel_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    check_kernel("cuda", torch.bfloat16, 1e-2)
    q, keys, values, lengths = inputs("cuda", torch.bfloat16)
    assert attend_rows(q, keys, values, lengths, 0.2).dtype is torch.bfloat16
