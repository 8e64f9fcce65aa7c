"""Gumbel argmax: the reference by the noise's definition, the kernel's noise and draws by the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftwood.kernels.gumbel import load_gumbel_argmax, log_exponential_noise, reference, token_keys
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.rows import assert_rows_are_alone, poisoned

SEEDS = [0, 5, -3, 2**40 + 7, -(2**63)]


def rows(count: int, width: int, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Logits, positions (some beyond 32 bits), seeds and temperatures (some 0)."""
    logits = torch.randn(count, width, generator=torch.Generator().manual_seed(width)) * 3
    positions = torch.arange(count) * 977 + (torch.arange(count) % 3 << 33)
    seeds = torch.tensor(SEEDS).repeat(count)[:count]
    temperatures = torch.tensor([1.0, 0.6, 0.0, 1.7]).repeat(count)[:count]
    return logits.to(device, dtype), positions.to(device), seeds.to(device), temperatures.to(device)


def test_reference_by_the_noise() -> None:
    logits, positions, seeds, temperatures = rows(8, 300, "cpu")
    drawn = load_gumbel_argmax("cpu")(logits, positions, seeds, temperatures)
    for row, (seed, temperature) in enumerate(zip(seeds.tolist(), temperatures.tolist(), strict=True)):
        noise = log_exponential_noise(token_keys(seed, 300, "cpu"), seed, positions[row : row + 1])[0]
        values = logits[row] / temperature - noise if temperature else logits[row]
        assert drawn[row] == values.argmax()
    one = load_gumbel_argmax("cpu")(logits, positions, seeds[3:4], temperatures[:1])
    assert torch.equal(one, load_gumbel_argmax("cpu")(logits, positions, seeds[3:4].expand(8), torch.ones(8)))


def check_noise(device: str, width: int) -> None:
    """Every token's noise: alone in its split, it is the value of the best."""
    from draftwood.kernels.gumbel import triton

    count = len(SEEDS)
    _, positions, seeds, _ = rows(count, width, device)
    with poisoned():
        got, ids = triton.draw_splits(
            torch.zeros(count, width, device=device), positions, seeds, torch.ones(1, device=device), 1
        )
    assert torch.equal(ids, torch.arange(width, dtype=torch.int32, device=device).expand(count, -1))
    expected = torch.cat(
        [
            log_exponential_noise(token_keys(seed, width, device), seed, positions[row : row + 1])
            for row, seed in enumerate(SEEDS)
        ]
    )
    torch.testing.assert_close(got, -expected, rtol=1e-6, atol=2e-6)


def check_draws(device: str, count: int, width: int, dtype: torch.dtype) -> None:
    from draftwood.kernels.gumbel import triton

    arguments = rows(count, width, device, dtype)
    with poisoned():
        drawn = triton.gumbel_argmax(*arguments)
    expected = reference.gumbel_argmax(*arguments)
    assert (drawn == expected).double().mean() > 0.95, "a device may differ in the last place only"
    greedy = arguments[3] == 0
    assert torch.equal(drawn[greedy], expected[greedy])


def check_edges(device: str) -> None:
    from draftwood.kernels.gumbel import triton

    settings = [torch.arange(3, device=device), torch.tensor([9], device=device)]
    cold, warm = torch.zeros(1, device=device), torch.ones(1, device=device)
    logits = torch.full((3, 5000), -torch.inf, device=device)
    assert triton.gumbel_argmax(logits, *settings, cold).tolist() == [0, 0, 0]
    logits[0, 4096] = -8.0
    logits[1, [3, 2047, 2048, 4999]] = 2.0
    logits[2, 4999] = -1e30
    for temperature in (cold, warm * 1e-9):
        assert triton.gumbel_argmax(logits, *settings, temperature)[[0, 2]].tolist() == [4096, 4999]
    assert triton.gumbel_argmax(logits, *settings, cold)[1] == 3
    assert triton.gumbel_argmax(logits, *settings, warm)[1] in (3, 2047, 2048, 4999)
    logits[:] = torch.nan
    assert all(0 <= token < 5000 for token in triton.gumbel_argmax(logits, *settings, warm).tolist())
    for bad in ([settings[0][:2], settings[1]], [settings[0], settings[0][:2]]):
        with pytest.raises(ValueError, match="3 rows need as many"):
            triton.gumbel_argmax(logits, *bad, warm)


def check_small(device: str) -> None:
    check_noise(device, 40)
    check_draws(device, 9, 2500, torch.float32)
    check_draws(device, 2, 1, torch.float16)
    check_edges(device)


def test_kernel_interpreted() -> None:
    run_interpreted("tests.kernels.test_gumbel", "check_small('cpu')")


@pytest.mark.gpu
def test_kernel_on_a_gpu(gpu: str) -> None:
    check_small(gpu)
    check_noise(gpu, 248_320)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check_draws(gpu, 64, 248_320, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [50_257, 248_320])
def test_rows_are_alone_on_a_gpu(gpu: str, width: int) -> None:
    assert_rows_are_alone(load_gumbel_argmax(gpu), *rows(64, width, gpu))


CASES = {"248320 float32": (torch.float32, 248_320), "151936 float16": (torch.float16, 151_936)}


@pytest.mark.parametrize(("target", "case"), compile_cases(*CASES))
def test_compiles(target: str, case: str) -> None:
    from draftwood.kernels.gumbel import triton

    dtype, width = CASES[case]
    splits = -(-width // triton.COLUMNS)
    parts = {"p_value": torch.float32, "p_id": torch.int32, "V": width, "SPLITS": splits}
    tensors = {"p_logits": dtype, "p_position": torch.int64, "p_seed": torch.int64, "p_temperature": torch.float32}
    sizes = {"STRIDE": width, "SEED_STRIDE": 0, "TEMPERATURE_STRIDE": 0, "COLUMNS": triton.COLUMNS}
    compile_kernel(triton._draw, target, tensors | parts | sizes, num_warps=4).check()
    second = parts | {"p_out": torch.int64, "BLOCK": 1 << (splits - 1).bit_length()}
    compile_kernel(triton._best, target, second, num_warps=1).check()
