"""The int8 form of a draft's matrices: close to what the file has, and out of a target's reach."""

from __future__ import annotations

import pytest
import torch

from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.kernels.dequant import dequantise
from draftwood.kernels.linear import LinearRequest, load_linear
from draftwood.kernels.linear.floats import cpu_has_bf16
from draftwood.kernels.linear.int8_cpu import INT8_CPU
from tests.kernels.test_row_invariance import random_raw


def request(name: str, rows: int, width: int, dtype: str = "auto", exact: bool = False) -> LinearRequest:
    return LinearRequest(BLOCK_TYPES[name], rows, width, "cpu", dtype, exact)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "F16"])
@pytest.mark.parametrize(("rows", "width"), [(47, 256), (576, 1536), (5, 32)])
def test_products_are_close_to_the_file_s_matrix(name: str, rows: int, width: int) -> None:
    raw = random_raw(name, rows, width)
    weight = INT8_CPU.prepare(raw, request(name, rows, width))
    matrix = dequantise(raw, BLOCK_TYPES[name])
    x = torch.randn(64, width, generator=torch.Generator().manual_seed(4))
    expected = x @ matrix.T
    for found in (weight.decode(x), weight.prefill(x)):
        assert found.dtype == torch.float32
        assert 0 < float((found - expected).norm() / expected.norm()) < 2e-2
    for count in (1, 3, 4, 7):
        torch.testing.assert_close(weight.decode(x[:count]), weight.decode(x)[:count], rtol=1e-2, atol=1e-2)
    assert weight.nbytes == rows * width + 2 * rows


def test_a_row_of_zeros_stays_one() -> None:
    raw = torch.zeros(16, 64).view(torch.uint8)
    weight = INT8_CPU.prepare(raw, request("F32", 16, 64))
    assert torch.equal(weight.decode(torch.ones(2, 64)), torch.zeros(2, 16))


def test_only_a_draft_gets_it() -> None:
    raw = random_raw("Q8_0", 64, 64)
    assert load_linear(raw, request("Q8_0", 64, 64, exact=True)).form != "int8"
    assert load_linear(raw, request("Q8_0", 64, 64, "float32")).form == "f32"
    assert INT8_CPU.can_run(request("F16", 64, 48)) is not None
    if cpu_has_bf16():
        assert load_linear(raw, request("Q8_0", 64, 64)).form == "int8"
