"""Prefill attention on a GPU: near the reference, one pass as several, unused rows never read, every target compiles
it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from draftwood.cache.registry import KV_TYPES, kv_pair, kv_spec, load_plane
from draftwood.cache.spec import KVSpec
from draftwood.kernels.attention import reference
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.kv_pairs import PAIRS, kv_cases, pointers, split_case
from tests.kernels.rows import poisoned

LARGEST_ERROR, MEAN_ERROR = 5e-3, 1e-3
"""Relative L2 of a row against float32 on the decoded rows: operands are halves, so a score of 20 is off by 0.01."""


def kept(kind: KVSpec, groups: int, width: int, rows: int, filled: int, seed: int, device: str) -> tuple[Any, Any]:
    """A plane of `rows` rows of which the first `filled` are there, the others NaN; and it as kernels read it."""
    from draftwood.cache.codecs import kept_rows

    plane = load_plane(kind)(groups, width, rows, device)
    for buffer in plane.buffers().values():
        buffer.fill_(torch.nan if buffer.dtype.is_floating_point else 127)
    data = torch.randn(filled, groups, width, generator=torch.Generator().manual_seed(seed)).to(device)
    # Rows that differ in size and share a direction, as those of a model do.
    plane.write(data * (1 + data[:, :, :1].abs()) + 0.3, 0)
    return plane, kept_rows(kind, plane)


def check(
    types: str, heads: int, groups: int, width: int, length: int, starts: tuple[int, ...], device: str, **options: Any
) -> None:
    """Passes that begin at `starts` and end at `length`, against the reference and against each other."""
    from draftwood.kernels.attention import prefill_triton as prefill

    segment = options.pop("segment", 1 << 14)
    segments = mock.patch.object(prefill, "SEGMENT_BYTES", 4 * groups * width * segment)
    key_kind, value_kind = kv_pair(types)
    key_plane, keys = kept(key_kind, groups, width, length + 50, length, 1, device)
    value_plane, values = kept(value_kind, groups, width, length + 50, length, 2, device)
    query = torch.randn(length, heads, width, generator=torch.Generator().manual_seed(3)).to(device)
    scale = width**-0.5
    exact = reference.attend_granules(query, key_plane.read(0, length), value_plane.read(0, length), 0, scale)
    whole = None
    for start in starts:
        with segments, poisoned():
            out = prefill.attend_granules(query[start:], keys, values, start, scale, **options)
        error = (out.float() - exact[start:]).norm(dim=-1) / exact[start:].norm(dim=-1)
        assert error.max() <= LARGEST_ERROR and error.mean() <= MEAN_ERROR, f"{types} from {start}: {error.max():.1e}"
        whole = out if whole is None else whole
        assert torch.equal(out, whole[start - starts[0] :]), f"{types} from {start}"
    # A shorter pass knows nothing of the rows after it.
    for plane in (key_plane, value_plane):
        for buffer in plane.buffers().values():
            buffer[:, length - 64 :] = torch.nan if buffer.dtype.is_floating_point else 127
    if length > 64:
        with segments, poisoned():
            out = prefill.attend_granules(query[:-64], keys, values, 0, scale, **options)
        assert whole is not None
        assert torch.equal(out[starts[0] :], whole[:-64])


@pytest.mark.parametrize(
    "call",
    [
        "check('f16', 4, 2, 64, 192, (0, 64, 128), 'cpu')",
        "from draftwood.kernels.attention.prefill_triton import Tile; "
        "check('q8_0/f32', 3, 1, 64, 320, (0, 192), 'cpu', segment=128, tile=Tile(2, 32, 64, 4, 1))",
        "check('q8_0', 2, 1, 128, 192, (0, 128), 'cpu', segment=128, out_dtype=torch.float16)",
        "from draftwood.kernels.attention.prefill_triton import AMD; "
        "check('tq2_0/q5_0', 2, 1, 256, 128, (0, 64), 'cpu', tile=AMD[256]); "
        "check('bf16', 6, 1, 128, 192, (64, 128), 'cpu', tile=AMD[128])",
    ],
)
def test_interpreted(call: str) -> None:
    run_interpreted("tests.kernels.test_prefill_attention", call)


@pytest.mark.gpu
@pytest.mark.parametrize("types", PAIRS)
@pytest.mark.parametrize(("heads", "groups", "width"), [(24, 4, 256), (9, 3, 64), (32, 8, 128)])
def test_on_a_gpu(types: str, heads: int, groups: int, width: int, gpu: str) -> None:
    check(types, heads, groups, width, 1344, (0, 64, 640, 1280), gpu)
    check(types, heads, groups, width, 2048, (0, 1024, 1984), gpu, segment=256, out_dtype=torch.float16)


def test_shapes_it_refuses() -> None:
    pytest.importorskip("triton")
    from draftwood.kernels.attention.prefill_triton import attend_granules

    _, rows = kept(kv_pair("f16")[0], 2, 64, 128, 128, 0, "cpu")
    for shape, start, what in [
        ((64, 4, 64), 32, "whole granules"),
        ((32, 4, 64), 0, "whole granules"),
        ((64, 3, 64), 0, "cannot share"),
        ((64, 4, 32), 0, "no tile"),
        ((256, 4, 64), 128, "positions"),
    ]:
        with pytest.raises(ValueError, match=what):
            attend_granules(torch.zeros(shape), rows, rows, start, 1.0)


CASES = {
    "27B": (24, 4, 256, False), "27B, carried": (24, 4, 256, True), "one head a program, 256": (9, 3, 256, False),
    "128": (32, 8, 128, False), "128, carried": (32, 8, 128, True), "one head a program, 128": (9, 3, 128, False),
    "64": (12, 3, 64, False), "64, carried": (12, 3, 64, True), "one head a program, 64": (9, 3, 64, False),
}  # fmt: skip


@pytest.mark.parametrize(("target", "case"), compile_cases(*CASES))
def test_compiles(target: str, case: str) -> None:
    from draftwood.kernels.attention import prefill_triton as prefill

    heads, groups, width, carried = CASES[case]
    table = prefill.AMD if target.startswith("gfx") else prefill.LARGE if target == "sm_90" else prefill.SMALL
    tile = table[width]
    part = prefill.heads_together(heads // groups, tile)
    floats = dict.fromkeys(("p_out", "p_mixed", "p_peak", "p_total"), torch.float32)
    halves = dict.fromkeys(("p_q", "p_k", "p_v"), torch.float16)
    sizes = {"start": 64, "granules": 32, "first": 16384, "stop": 32768, "k_stride": 1 << 22, "v_stride": 1 << 22}
    made = compile_kernel(
        prefill._attend, target,
        {**floats, **halves, **sizes, "scale": 0.1, "H": heads, "G": groups, "D": width, "PART": part,
         "KEYS": tile.keys, "WIDTH": tile.width, "GRANULE": 64, "CARRIED": carried},
        num_warps=tile.warps * part, num_stages=tile.stages,
    )  # fmt: skip
    # What NVIDIA's compiler puts aside is addresses, before and after the loops.
    made.check(matrix=True, spilled=0 if target.startswith("gfx") or case == "27B" else 128)


@pytest.mark.parametrize(("target", "case"), kv_cases(tuple(kind for kind in KV_TYPES if kind != "f16")))
def test_expanding_compiles(target: str, case: str) -> None:
    from draftwood.cache.codecs import load_codec
    from draftwood.kernels.attention import prefill_triton

    kind, _, width = split_case(case)
    compile_kernel(
        prefill_triton._expand, target,
        {**pointers(kind, width, ""), "p_out": torch.float16, "first": 64, "rows": 1 << 16, "segment": 1 << 14,
         "LOAD": load_codec(kv_spec(kind)).load, "D": width, "ROWS": prefill_triton._EXPANDED_ROWS},
        num_warps=4,
    ).check()  # fmt: skip
