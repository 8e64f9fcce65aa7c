"""Attention of a draft's block on a GPU: near the reference under every mask, unused rows never read, every target
compiles it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from draftwood.cache.registry import kv_pair
from draftwood.kernels.attention import block
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.kv_pairs import PAIRS, kv_cases, loads, split_case
from tests.kernels.rows import poisoned
from tests.kernels.test_prefill_attention import LARGEST_ERROR, MEAN_ERROR, kept

MASKS = [(None, False), (None, True), (37, False), (37, True), (5, False), (5, True)]


def check(
    types: str,
    heads: int,
    groups: int,
    width: int,
    rows: int,
    committed: int,
    capacity: int,
    device: str,
    masks: list[tuple[int | None, bool]] = MASKS,
) -> None:
    """A block of `rows` after `committed` rows, with room for `capacity`; a window's plane begins as late as it may."""
    from draftwood.kernels.attention.block_triton import attend_block

    planes = [
        kept(kind, groups, width, capacity, committed + rows, seed, device) for seed, kind in enumerate(kv_pair(types))
    ]
    query = torch.randn(rows, heads, width, generator=torch.Generator().manual_seed(3)).to(device)
    scale = width**-0.5
    length = torch.tensor([committed], device=device)
    for window, causal in masks:
        low = block.first_visible(committed, window)
        mask = block.grouped_mask(block.block_mask(rows, committed, window, causal, device), heads, groups)
        read = [plane.read(low, committed + rows) for plane, _ in planes]
        exact = block.attend_block(query, read[0], read[1], mask, scale).view(rows, heads, width)
        shifted = []
        for _, rows_of in planes:
            fields = tuple(field.roll(-low, 1) for field in rows_of.fields)
            for field in fields:
                if low:
                    field[:, -low:] = torch.nan if field.is_floating_point() else 127
            shifted.append(replace(rows_of, fields=fields))
        with poisoned():
            first = torch.tensor([low], device=device)
            out = attend_block(query, *shifted, length, first, window, causal, scale)
        assert out.shape == (rows, heads * width)
        if device != "cpu":
            assert torch.equal(out, attend_block(query, *shifted, length, first, window, causal, scale))
        error = (out.view_as(exact) - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert error.max() <= LARGEST_ERROR and error.mean() <= MEAN_ERROR, (
            f"{types}, window {window}, causal {causal}: {error.max():.1e}"
        )


@pytest.mark.parametrize(
    "call",
    [
        "check('f16', 4, 2, 64, 3, 90, 200, 'cpu')",
        "check('q8_0/bf16', 2, 1, 64, 5, 130, 150, 'cpu', MASKS[2:])",
        "check('f32/q8_0', 3, 1, 64, 1, 0, 100, 'cpu', MASKS[::2])",
        "check('q8_0', 4, 1, 128, 17, 40, 80, 'cpu', MASKS[:4:3])",
        "check('q4_1/tq3_0', 2, 1, 64, 5, 70, 100, 'cpu', MASKS[3:4])",
    ],
)
def test_interpreted(call: str) -> None:
    run_interpreted("tests.kernels.test_block_attention", call)


@pytest.mark.gpu
@pytest.mark.parametrize("types", PAIRS)
def test_types_on_a_gpu(types: str, gpu: str) -> None:
    check(types, 32, 8, 128, 16, 5000, 5200, gpu, [(2048, True)])
    check(types, 9, 3, 64, 16, 300, 500, gpu, [(37, True)])
    check(types, 4, 2, 256, 16, 300, 500, gpu, [(None, False)])


@pytest.mark.gpu
@pytest.mark.parametrize("types", ["f16", "q8_0", "q8_0/f32"])
def test_on_a_gpu(types: str, gpu: str) -> None:
    masks = [(None, False), (None, True), (2048, False), (2048, True)]
    for rows, committed in [(16, 5000), (16, 2040), (1, 0), (7, 100), (64, 9000)]:
        check(types, 32, 8, 128, rows, committed, 9200, gpu, masks)
    check(types, 9, 3, 64, 16, 300, 500, gpu)
    check(types, 4, 2, 256, 16, 300, 500, gpu)


@pytest.mark.gpu
def test_a_captured_graph_reads_the_length(gpu: str) -> None:
    """One graph serves every length, with the bits of a launch of its own."""
    from draftwood.kernels.attention.block_triton import attend_block

    (_, keys), (_, values) = (kept(kv_pair("q8_0")[0], 8, 128, 5000, 5000, seed, gpu) for seed in (0, 1))
    query = torch.randn(16, 32, 128, device=gpu)
    committed, first = torch.tensor([4000], device=gpu), torch.tensor([0], device=gpu)
    for window in (None, 2048):
        attend_block(query, keys, values, committed, first, window, True, 0.1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = attend_block(query, keys, values, committed, first, window, True, 0.1)
        for length in (0, 17, 3000, 4984):
            committed.fill_(length)
            graph.replay()
            assert torch.equal(out, attend_block(query, keys, values, committed, first, window, True, 0.1))


def test_shapes_it_refuses() -> None:
    pytest.importorskip("triton")
    from draftwood.kernels.attention.block_triton import attend_block

    _, rows = kept(kv_pair("f16")[0], 2, 64, 128, 128, 0, "cpu")
    at = torch.tensor([10])
    for shape, what in [((65, 4, 64), "1 to 64 rows"), ((4, 3, 64), "cannot share"), ((4, 4, 32), "no tile")]:
        with pytest.raises(ValueError, match=what):
            attend_block(torch.zeros(shape), rows, rows, at, at, None, True, 1.0)


def spilled_by(target: str, key: str, value: str, width: int) -> int:
    """Bytes that may be put aside."""
    if target.startswith("gfx"):
        # Of f32 at 64 and bf16 at 128, whose rows are converted where they are multiplied.
        return {"f32": 136, "bf16": 224}.get(key if key == value else "", 16)
    if target == "sm_90":
        return 0
    # Keys that pass through shared memory are operands beside those of 64 query rows.
    return {64: 64, 128: 160, 256: 576}[width] if "tq3_0" in (key, value) else 64


@pytest.mark.parametrize(("target", "case"), kv_cases(widths=(128, 64, 256)))
def test_compiles(target: str, case: str) -> None:
    from draftwood.kernels.attention import block_triton

    key, value, width = split_case(case)
    table = block_triton.AMD if target.startswith("gfx") else block_triton.NVIDIA
    if width not in table:
        pytest.skip("no tile")
    tile = table[width]
    floats = dict.fromkeys(("p_q", "p_mixed", "p_peak", "p_total"), torch.float32)
    compile_kernel(
        block_triton._attend_block, target,
        {**loads(key, value, width), **floats, "p_committed": torch.int64, "p_first": torch.int64, "k_rows": 2176,
         "v_rows": 2176, "rows": 16, "scale": 0.1, "H": 32, "G": 8, "D": width, "WINDOW": 2048, "CAUSAL": False,
         "ROWS": tile.rows, "KEYS": tile.keys},
        num_warps=tile.warps, num_stages=tile.stages,
    ).check(matrix=True, spilled=spilled_by(target, key, value, width))  # fmt: skip


@pytest.mark.parametrize(("target", "case"), compile_cases("128"))
def test_combining_compiles(target: str, case: str) -> None:
    from draftwood.kernels.attention import block_triton

    floats = dict.fromkeys(("p_mixed", "p_peak", "p_total", "p_out"), torch.float32)
    compile_kernel(
        block_triton._combine, target,
        {**floats, "p_committed": torch.int64, "rows": 16, "parts": 33, "H": 32, "D": int(case), "WINDOW": 2048,
         "KEYS": 64, "PARTS": 64},
        num_warps=4,
    ).check()  # fmt: skip
