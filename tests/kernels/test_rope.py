"""Rotary of an attention layer's heads with their norms: reference by formula, kernel by reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from draftwood.kernels.rope import frequencies, load_rotate_heads, reference, rotation
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.rows import assert_rows_are_alone, poisoned

EPS = 1e-6


def heads(rows: int, count: int, width: int, device: str, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(rows, count, width, generator=torch.Generator().manual_seed(seed)) * 3).to(device, dtype)


def turns(rows: int, width: int, device: str) -> Tensor:
    return rotation(torch.arange(rows, device=device) * 7919 + 100_000, frequencies(width, 1e7).to(device))


@pytest.mark.parametrize("pairing", ["halves", "adjacent"])
def test_reference_by_the_formula(pairing: str) -> None:
    q, k, weight = heads(2, 3, 12, "cpu", 0), heads(2, 1, 12, "cpu", 1), torch.rand(12)
    q_out, k_out = load_rotate_heads("cpu")(q, k, turns(2, 8, "cpu"), pairing, weight, None, EPS)
    for x, out, norm in ((q, q_out, weight), (k, k_out, None)):
        expected = x.double()
        if norm is not None:
            expected = expected * norm / (expected.square().mean(-1, keepdim=True) + EPS).sqrt()
        for row in range(2):
            for pair in range(4):
                angle = (row * 7919 + 100_000) * 1e7 ** (-2 * pair / 8)
                one, two = (2 * pair, 2 * pair + 1) if pairing == "adjacent" else (pair, pair + 4)
                a, b = expected[row, :, one].clone(), expected[row, :, two].clone()
                expected[row, :, one] = a * math.cos(angle) - b * math.sin(angle)
                expected[row, :, two] = b * math.cos(angle) + a * math.sin(angle)
        torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=2e-6)


def check_heads(
    device: str, shape: tuple[int, int, int, int], width: int, pairing: str, normed: bool, dtype: torch.dtype
) -> None:
    from draftwood.kernels.rope import triton

    rows, q_heads, kv_heads, head_dim = shape
    # Queries as a gated projection has them: each head followed by its gate, which must not be read.
    q = torch.full((rows, q_heads, 2, head_dim), torch.nan, device=device, dtype=dtype)[:, :, 0]
    q.copy_(heads(rows, q_heads, head_dim, device, 0, dtype))
    k = heads(rows, kv_heads + 1, head_dim, device, 1, dtype)[:, 1:]
    norms = [torch.rand(head_dim, device=device) if normed else None for _ in "qk"]
    with poisoned():
        out = triton.rotate_heads(q, k, turns(rows, width, device), pairing, *norms, EPS, dtype)
    expected = reference.rotate_heads(q, k, turns(rows, width, device), pairing, *norms, EPS, dtype)
    tolerance = 4e-6 if dtype is torch.float32 else torch.finfo(dtype).eps
    for one, other in zip(out, expected, strict=True):
        assert one.dtype is dtype and one.is_contiguous()
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def check_small(device: str) -> None:
    from draftwood.kernels.rope import triton

    for pairing in ("halves", "adjacent"):
        check_heads(device, (3, 2, 1, 16), 6, pairing, True, torch.float32)
        check_heads(device, (2, 3, 2, 20), 20, pairing, False, torch.bfloat16)
    check_heads(device, (1, 1, 1, 33), 8, "halves", True, torch.float32)
    q, k, weight = heads(2, 2, 8, device, 0), heads(2, 1, 8, device, 1), torch.rand(7, device=device)
    for bad in (
        lambda: triton.rotate_heads(q, k[:1], turns(2, 8, device), "halves"),
        lambda: triton.rotate_heads(q, k, turns(1, 8, device), "halves"),
        lambda: triton.rotate_heads(q, k, turns(2, 10, device), "halves"),
        lambda: triton.rotate_heads(q, k, turns(2, 8, device), "halves", weight),
    ):
        with pytest.raises(ValueError, match=r"pass|weights"):
            bad()


def test_kernel_interpreted() -> None:
    run_interpreted("tests.kernels.test_rope", "check_small('cpu')")


@pytest.mark.gpu
def test_kernel_on_a_gpu(gpu: str) -> None:
    check_small(gpu)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check_heads(gpu, (64, 24, 4, 256), 64, "halves", True, dtype)
        check_heads(gpu, (64, 9, 3, 64), 64, "adjacent", False, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("head_dim", "width"), [(256, 64), (128, 128), (64, 64), (33, 8)])
@pytest.mark.parametrize("pairing", ["halves", "adjacent"])
def test_rows_are_alone_on_a_gpu(gpu: str, head_dim: int, width: int, pairing: str) -> None:
    rotate, norm = load_rotate_heads(gpu), torch.rand(head_dim, device=gpu)
    q, k, turn = heads(64, 6, head_dim, gpu, 0), heads(64, 2, head_dim, gpu, 1), turns(64, width, gpu)
    assert_rows_are_alone(lambda q, k, turn: torch.cat(rotate(q, k, turn, pairing, norm, norm, EPS), 1), q, k, turn)
    assert_rows_are_alone(lambda q, k, turn: torch.cat(rotate(q, k, turn, pairing), 1), q, k, turn)


CASES = {
    "gated, normed, halves of 64 of 256": (torch.float32, 256, 64, False),
    "plain, adjacent, 64": (None, 64, 64, True),
    "normed, halves, 128": (torch.float32, 128, 128, False),
}


@pytest.mark.parametrize(("target", "case"), compile_cases(*CASES))
def test_compiles(target: str, case: str) -> None:
    from draftwood.kernels.rope.triton import _rotate_heads, shape_of

    norm, head_dim, width, adjacent = CASES[case]
    block, warps = shape_of(head_dim)
    tensors = dict.fromkeys(("p_q", "p_k", "p_turn", "p_q_out", "p_k_out"), torch.float32)
    strides = {"Q_ROW": 48 * head_dim, "Q_HEAD": 2 * head_dim, "K_ROW": 4 * head_dim, "K_HEAD": head_dim}
    sizes = {"H": 24, "G": 4, "D": head_dim, "WIDTH": width, "ADJACENT": adjacent, "BLOCK": block}
    arguments = tensors | {"p_q_norm": norm, "p_k_norm": norm, "eps": EPS} | strides | sizes
    compile_kernel(_rotate_heads, target, arguments, num_warps=warps).check()
