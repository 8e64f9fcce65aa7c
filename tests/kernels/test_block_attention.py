"""Attention of a draft's block on a GPU: near the reference under every mask, unused rows never read, every target
compiles it."""

from __future__ import annotations

import pytest
import torch

from draftwood.cache.registry import kv_pair
from draftwood.kernels.attention import block
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.rows import poisoned
from tests.kernels.test_prefill_attention import kept

LARGEST_ERROR = 2e-3
"""Relative L2 of a row against float32 on the decoded rows: operands are halves."""

MASKS = [(None, False), (None, True), (37, False), (37, True), (5, False), (5, True)]


def check(
    types: str, heads: int, groups: int, width: int, rows: int, committed: int, capacity: int, device: str,
    masks: list[tuple[int | None, bool]] = MASKS,
) -> None:  # fmt: skip
    """A block of `rows` after `committed` rows, with room for `capacity`; with a window the plane begins where one must."""
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
        # A plane that begins at `low`: what lies before cannot be seen, so it is made NaN by moving the rows.
        shifted = []
        for _, rows_of in planes:
            fields = tuple(field.roll(-low, 1) for field in rows_of.fields)
            for field in fields:
                if low:
                    field[:, -low:] = torch.nan if field.is_floating_point() else 127
            shifted.append(type(rows_of)(rows_of.load, fields))
        with poisoned():
            first = torch.tensor([low], device=device)
            out = attend_block(query, shifted[0], shifted[1], length, first, window, causal, scale)
            again = attend_block(query, shifted[0], shifted[1], length, first, window, causal, scale)
        assert out.shape == (rows, heads * width)
        assert torch.equal(out, again)
        error = (out.view_as(exact) - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert error.max() <= LARGEST_ERROR, f"{types}, window {window}, causal {causal}: {error.max():.1e}"


@pytest.mark.parametrize(
    "call",
    [
        "check('f16', 4, 2, 64, 7, 90, 200, 'cpu')",
        "check('q8_0/bf16', 2, 1, 64, 16, 130, 150, 'cpu')",
        "check('f32/q8_0', 3, 1, 64, 1, 0, 100, 'cpu', MASKS[::2])",
        "check('q8_0', 4, 1, 128, 33, 40, 80, 'cpu', MASKS[:4:3])",
    ],
)
def test_interpreted(call: str) -> None:
    run_interpreted("tests.kernels.test_block_attention", call)
