"""Rows of a stored token table: reference by `dequantise`, kernel by reference, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.kernels.dequant import dequantise
from draftwood.kernels.embedding import load_embed, reference
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.rows import assert_rows_are_alone, poisoned
from tests.kernels.test_dequant import random_blocks


def table_of(name: str, rows: int, width: int) -> Tensor:
    return torch.from_numpy(random_blocks(name, rows, width // BLOCK_TYPES[name].block_size))


def test_reference_is_a_row_of_the_dequantised_table() -> None:
    table = table_of("Q4_K", 9, 512)
    rows = load_embed("cpu")(table, BLOCK_TYPES["Q4_K"], torch.tensor([8, 0, 8]))
    assert torch.equal(rows, dequantise(table, BLOCK_TYPES["Q4_K"])[[8, 0, 8]])


def check_rows(device: str, name: str, rows: int, width: int, tokens: list[int]) -> None:
    from draftwood.kernels.embedding import triton

    table = table_of(name, rows, width)
    ids = torch.tensor(tokens)
    expected = reference.embed(table, BLOCK_TYPES[name], ids)
    tables = [table] if device == "cpu" else [table.to(device), table.pin_memory()]
    for place in tables:
        with poisoned():
            out = triton.embed(place, BLOCK_TYPES[name], ids.to(device))
        assert torch.equal(out.cpu().view(torch.int32), expected.view(torch.int32)), name


def check_small(device: str) -> None:
    from draftwood.kernels.embedding import triton

    for name in BLOCK_TYPES:
        check_rows(device, name, 5, 1280, [4, 0, 2, 4])
    check_rows(device, "Q8_0", 3, 32, [2])
    table = table_of("Q8_0", 3, 32).to(device)
    for token in (-1, 3):
        assert triton.embed(table, BLOCK_TYPES["Q8_0"], torch.tensor([token], device=device)).isnan().all()
    with pytest.raises(ValueError, match="whole blocks of 18 bytes"):
        triton.embed(table, BLOCK_TYPES["Q4_0"], torch.tensor([0], device=device))


def test_kernel_interpreted() -> None:
    run_interpreted("tests.kernels.test_embedding", "check_small('cpu')")


def test_every_block_type_has_a_kernel_form() -> None:
    pytest.importorskip("triton")
    from draftwood.kernels.dequant.triton import WEIGHT_OF

    assert WEIGHT_OF.keys() == BLOCK_TYPES.keys()


@pytest.mark.gpu
def test_kernel_on_a_gpu(gpu: str) -> None:
    check_small(gpu)
    for name in ("Q4_K", "Q6_K", "Q8_0", "F16"):
        check_rows(gpu, name, 30_000, 5120, [29_999, 7, 0, 12_345] * 16)


@pytest.mark.gpu
def test_rows_are_alone_on_a_gpu(gpu: str) -> None:
    embed, table = load_embed(gpu), table_of("Q4_K", 300, 5120).to(gpu)
    tokens = torch.randint(0, 300, (64,), device=gpu)
    assert_rows_are_alone(lambda tokens: embed(table, BLOCK_TYPES["Q4_K"], tokens), tokens)


@pytest.mark.parametrize(("target", "name"), compile_cases("Q4_K", *(name for name in BLOCK_TYPES if name != "Q4_K")))
def test_compiles(target: str, name: str) -> None:
    from draftwood.kernels.dequant.triton import WEIGHT_OF
    from draftwood.kernels.embedding.triton import COLUMNS, _embed

    kind = BLOCK_TYPES[name]
    tensors = {"p_byte": torch.uint8, "p_word": torch.int16, "p_token": torch.int64, "p_out": torch.float32}
    sizes = {"V": 248320, "N": 5120, "ROW_BYTES": kind.row_bytes(5120), "BLOCK": kind.block_size, "COLUMNS": COLUMNS}
    arguments = tensors | sizes | {"WEIGHT": WEIGHT_OF[name]}
    compile_kernel(_embed, target, arguments, num_warps=4, enable_fp_fusion=False).check()
