"""The GPU form of a matrix: packing loses nothing, products are near the exact ones, rows are alone, every target
compiles it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.kernels.dequant import dequantise
from draftwood.kernels.draw import draw
from draftwood.kernels.layouts import COMPACT, LAYOUTS, WEIGHTS, layout_of
from draftwood.kernels.linear import LinearRequest
from draftwood.kernels.linear.packed import PACKED
from draftwood.kernels.linear.packing import CODE_UNIT, pack
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.rows import assert_rows_are_alone, poisoned

LARGEST_ERROR = 1e-3
"""Relative L2 against float64 on the dequantised weights (issue: fp16 operands)."""


def matrix(block_type: str, rows: int, width: int, device: str) -> torch.Tensor:
    return draw(7, BLOCK_TYPES[block_type], (rows, width), 0.02, device)


def check(block_type: str, rows: int, width: int, counts: tuple[int, ...], device: str) -> None:
    """Decode and prefill against float64, with one value of 3e5 in the third row and a row of zeros."""
    from draftwood.kernels.linear import triton

    raw = matrix(block_type, rows, width, device)
    exact = dequantise(raw, BLOCK_TYPES[block_type]).double()
    packed = triton.join([pack(raw, BLOCK_TYPES[block_type], width)])
    x = torch.randn(max(counts), width, generator=torch.Generator().manual_seed(1)).to(device)
    if len(x) > 3:
        x[2, 5], x[3] = 3e5, 0
    wanted = x.double() @ exact.T
    for count in counts:
        with poisoned():
            made = [triton.decode(x[:count].contiguous(), packed)] if count <= 64 else []
            made.append(triton.prefill(x[:count].contiguous(), packed))
        for out in made:
            assert out.shape == (count, rows)
            error = (out.double() - wanted[:count]).norm(dim=1) / wanted[:count].norm(dim=1).clamp_min(1e-9)
            assert error.max() <= LARGEST_ERROR, f"{block_type} {count} rows: {error.max():.1e}"


def awkward(block_type: str, rows: int, width: int, device: str) -> torch.Tensor:
    """Random bytes with units of all sizes: ordinary ones, zeros, negative ones, the smallest that a half can be."""
    kind, random = BLOCK_TYPES[block_type], torch.Generator().manual_seed(11)
    blocks = torch.randint(0, 256, (rows * width // kind.block_size, kind.type_size), generator=random).to(torch.uint8)
    halves = (0, 2) if layout_of(block_type).minimum else (208,)
    for at in halves:
        unit = torch.exp2(torch.randint(-24, 0, (len(blocks), 1), generator=random).float())
        unit *= 1 + torch.rand(len(blocks), 1, generator=random)
        unit[::7], unit[3::5] = 0, -unit[3::5]
        blocks[:, at : at + 2] = unit.half().view(torch.uint8)
    blocks[: width // kind.block_size] = 0
    return blocks.view(rows, -1).to(device)


def check_compact(block_type: str, rows: int, width: int, counts: tuple[int, ...], device: str) -> None:
    """A compact layout has the bits of the fast one, in decode and prefill."""
    from draftwood.kernels.linear import triton

    kind, random = BLOCK_TYPES[block_type], torch.Generator().manual_seed(3)
    x = torch.randn(max(counts), width, generator=random).to(device)
    for raw in (matrix(block_type, rows, width, device), awkward(block_type, rows, width, device)):
        fast, compact = (triton.join([pack(raw, kind, width, layout)]) for layout in WEIGHTS)
        assert torch.equal(fast.factor, compact.factor) and compact.nbytes < fast.nbytes
        for count in counts:
            with poisoned():
                made = [triton.decode(x[:count], each) for each in (fast, compact)] if count <= 64 else []
                made += [triton.prefill(x[:count], each) for each in (fast, compact)]
            assert all(out.isfinite().all() for out in made)
            for one, other in zip(made[::2], made[1::2], strict=True):
                assert torch.equal(one, other), f"{block_type}, {count} rows"


def check_joined(types: tuple[str, ...], outputs: tuple[int, ...], width: int, rows: int, device: str) -> None:
    """Several matrices in one launch have the outputs that each has alone, near float64."""
    from draftwood.kernels.linear import triton

    raws = [matrix(name, n, width, device) for name, n in zip(types, outputs, strict=True)]
    joined = triton.join([pack(raw, BLOCK_TYPES[name], width) for raw, name in zip(raws, types, strict=True)])
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(2)).to(device)
    exact = torch.cat([dequantise(raw, BLOCK_TYPES[name]) for raw, name in zip(raws, types, strict=True)]).double()
    wanted = x.double() @ exact.T
    with poisoned():
        made = [triton.decode(x, joined), triton.prefill(x, joined)]
    for out in made:
        assert out.shape == (rows, sum(outputs))
        for part, expected in zip(out.split(outputs, 1), wanted.split(outputs, 1), strict=True):
            assert (part.double() - expected).norm() <= LARGEST_ERROR * expected.norm()


@pytest.mark.parametrize("block_type", LAYOUTS)
def test_packing_keeps_the_codes(block_type: str) -> None:
    """The layout undone by its description gives the dequantised weights, but for the rounding of scales."""
    kind, layout = BLOCK_TYPES[block_type], LAYOUTS[block_type]
    width = 768 if kind.block_size == 256 else 288
    raw = matrix(block_type, 40, width, "cpu")
    packed = pack(raw, kind, width)
    n, k = packed.padded
    assert (n, k) == (128, 768 if kind.block_size == 256 else 384)
    words = packed.words.long() & 0xFFFFFFFF
    weights = torch.empty(n, k)
    for m in range(16):
        for h in (0, 1):
            if layout.bits == 16:
                code = ((words[..., m] >> 16 * h) & 0xFFFF).to(torch.int16).view(torch.float16).float()
            else:
                pairs = 2 if layout.bits == 8 else 4
                width_of = 16 // pairs
                code = (words[..., m // pairs] >> (width_of * (m % pairs) + 16 * h)) & ((1 << width_of) - 1)
                if packed.high is not None:
                    extra = layout.bits - 4
                    word, at = divmod(m, 16 // extra)
                    place = 4 * (m % 2) + at // 2 * extra % 4 + 8 * (at // 2 * extra // 4) + 16 * h
                    code = code | ((packed.high.long()[..., word] >> place) & ((1 << extra) - 1)) << 4
                assert packed.scales is not None
                scales = packed.scales.view(torch.float16).float().unflatten(-1, (32 // layout.group, -1))
                group = scales[..., (2 * m + h) // layout.group, :]
                least = group[..., 1] if layout.minimum else -layout.offset * CODE_UNIT**-1 * group[..., 0]
                code = code.float() * CODE_UNIT**-1 * group[..., 0] + least
            for t in range(4):
                weights.view(n // 32, 32, k // 128, 128)[..., 32 * t + 2 * m + h] = code[..., t].transpose(1, 2)
    weights = weights * packed.factor.unsqueeze(1)
    exact = dequantise(raw, kind)
    # A half is off by 2**-11 at most; where a type has minima two of them are, and one is of a larger number.
    assert (weights[:40, :width] - exact).norm() <= (6e-4 if layout.minimum else 3e-4) * exact.norm()
    assert not weights[:, width:].any() or layout.minimum
    assert packed.nbytes == n * k * layout.bits_a_weight / 8 + 4 * n


def check_staged_order() -> None:
    from draftwood.kernels.linear import triton

    staged, factor = triton.stage(torch.arange(256).view(1, 256).float(), 256, 1)
    out = staged[0].float() * factor
    for m in range(16):
        for t in range(4):
            for h in (0, 1):
                assert out[128 + 8 * m + 2 * t + h] == 128 + 32 * t + 2 * m + h


def test_staged_inputs_have_the_order_of_the_layout() -> None:
    run_interpreted("tests.kernels.test_packed_linear", "check_staged_order()")


@pytest.mark.parametrize(
    "types", [("Q4_K", "Q6_K"), ("Q5_K", "Q8_0"), ("Q4_0", "Q3_K"), ("Q2_K", "Q5_0"), ("F16", "IQ4_XS")]
)
def test_interpreted(types: tuple[str, ...]) -> None:
    calls = [f"check({name!r}, 130, 256, (1, 9, 70), 'cpu')" for name in types]
    run_interpreted("tests.kernels.test_packed_linear", "; ".join(calls))


@pytest.mark.parametrize("block_type", COMPACT)
def test_compact_interpreted(block_type: str) -> None:
    run_interpreted("tests.kernels.test_packed_linear", f"check_compact({block_type!r}, 130, 512, (3, 70), 'cpu')")


def test_whole_tiles_go_straight_to_the_output() -> None:
    run_interpreted("tests.kernels.test_packed_linear", "check('Q4_0', 1300, 384, (9,), 'cpu')")


def test_joined_interpreted() -> None:
    run_interpreted(
        "tests.kernels.test_packed_linear",
        "check_joined(('Q5_K', 'Q4_K', 'Q8_0'), (130, 256, 48), 256, 9, 'cpu')",
    )


def test_what_it_can_run() -> None:
    kind = BLOCK_TYPES["Q4_K"]
    assert PACKED.can_run(LinearRequest(kind, 256, 256, "cpu", "auto"))
    assert PACKED.can_run(LinearRequest(kind, 256, 256, "cuda", "bfloat16"))
    pytest.importorskip("triton")
    assert PACKED.can_run(LinearRequest(kind, 256, 256, "cuda", "auto")) is None


SHAPES = [(34816, 5120), (5120, 17408), (12288, 5120), (5120, 6144), (1024, 5120), (576, 576), (130, 1536)]


@pytest.mark.gpu
@pytest.mark.parametrize("block_type", LAYOUTS)
def test_on_a_gpu(block_type: str, gpu: Any) -> None:
    """Errors and rows, also behind a captured pass of another number of rows."""
    from draftwood.kernels.linear import triton

    for rows, width in SHAPES:
        if width % BLOCK_TYPES[block_type].block_size:
            continue
        check(block_type, rows, width, (1, 16, 64, 200), "cuda")
        packed = triton.join([pack(matrix(block_type, rows, width, "cuda"), BLOCK_TYPES[block_type], width)])
        x = torch.randn(64, width, device="cuda")
        assert_rows_are_alone(lambda x, packed=packed: triton.decode(x, packed), x)
        assert torch.equal(triton.decode(x, packed), triton.decode(x, packed))
        long = torch.randn(448, width, device="cuda")
        whole = triton.prefill(long, packed)
        for first, last in ((0, 64), (0, 192), (64, 128), (192, 448)):
            assert torch.equal(triton.prefill(long[first:last].clone(), packed), whole[first:last])


@pytest.mark.gpu
@pytest.mark.parametrize("block_type", COMPACT)
def test_compact_on_a_gpu(block_type: str, gpu: Any) -> None:
    from draftwood.kernels.linear import triton

    for rows, width in ((34816, 5120), (5120, 17408), (130, 1536)):
        check_compact(block_type, rows, width, (1, 16, 23, 64, 200), "cuda")
        packed = triton.join([pack(matrix(block_type, rows, width, "cuda"), BLOCK_TYPES[block_type], width, "compact")])
        assert_rows_are_alone(lambda x, packed=packed: triton.decode(x, packed), torch.randn(64, width, device="cuda"))


MIXES = ("Q4_K", "Q6_K", "Q5_K+Q4_K+Q8_0", "Q4_K+Q6_K", "Q5_K", "Q8_0", "Q5_0", "Q4_0", "Q2_K", "Q3_K", "F16")
"""Block types of one launch: the single ones, a gated delta net's inputs and an attention's in a popular file."""

COMPACT_MIXES = ("Q4_K", "Q6_K", "Q5_K+Q4_K+Q8_0")

JOINED = [
    (("Q5_K", "Q4_K", "Q8_0"), (10240, 6144, 96), 5120),
    (("Q4_K", "Q6_K"), (13312, 1024), 5120),
    (("Q4_K", "F16", "Q3_K", "Q6_K"), (130, 48, 64, 576), 768),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("types", "outputs", "width"), JOINED)
def test_joined_on_a_gpu(types: tuple[str, ...], outputs: tuple[int, ...], width: int, gpu: Any) -> None:
    from draftwood.kernels.linear import triton

    for rows in (1, 16, 23, 64):
        check_joined(types, outputs, width, rows, "cuda")
    kinds = [BLOCK_TYPES[name] for name in types]
    parts = [pack(matrix(kind.name, n, width, "cuda"), kind, width) for kind, n in zip(kinds, outputs, strict=True)]
    joined = triton.join(parts)
    x = torch.randn(64, width, device="cuda")
    assert_rows_are_alone(lambda x: triton.decode(x, joined), x)


CASES = {f"{mix} at {rows} rows": (mix, rows, "fast") for mix in MIXES for rows in (16, 8, 64)}
CASES |= {f"{mix} compact at {rows} rows": (mix, rows, "compact") for mix in COMPACT_MIXES for rows in (16, 8, 64)}


def segment(name: str, weights: str = "fast") -> tuple[torch.dtype, ...]:
    """Types of a matrix's pointers."""
    layout = layout_of(name, weights)
    scales = torch.int32 if layout.compact or layout.scale_bits > 16 else torch.int16
    return torch.int32, torch.int32, scales, torch.int32, torch.int32


def assert_pairs_are_neighbours(ttgir: str) -> None:
    """PTX that takes two codes at a time is given pairs along the last axis, the first one of a lane's registers."""
    found = re.findall(r"elementwise_inline_asm.*packed_element = 2.* -> tensor<([^#]*), (#\w+)>", ttgir)
    assert found and {shape for shape, _ in found} == {"512x4x2x2x2xf16"}, "taken before a broadcast"
    names = {name for _, name in found}
    for name in names:
        first = re.search(rf"^{name} = #ttg.linear<.register = ..([0-9, ]+)\]", ttgir, re.MULTILINE)
        assert first is not None and first[1] == "0, 0, 0, 0, 1", name


@pytest.mark.parametrize(("target", "case"), compile_cases(*CASES))
def test_decode_compiles(target: str, case: str) -> None:
    from draftwood.kernels.linear import triton

    mix, rows, weights = CASES[case]
    names = mix.split("+")
    layouts = [layout_of(name, weights) for name in names]
    assembly = target.startswith("sm_")
    tiling = triton.NVIDIA if assembly else triton.AMD
    if len(names) > 1 and not tiling.joins:
        pytest.skip("a launch each on this device")
    tiles, _ = triton.padded_rows(rows, tiling)
    arguments = {
        "p_x": torch.float16, "segments": tuple(segment(name, weights) for name in names), "p_starts": torch.int32,
        "p_parts": torch.float32, "p_x_factor": torch.float32, "p_factor": torch.float32, "p_columns": torch.int32,
        "p_out": torch.float32, "N": 34816, "K": 5120, "P": 264, "COUNT": 5, "REAL": 34816,
        "DIRECT": mix == "Q6_K" and tiling.direct,
        "TILES": tiles, "ROWS": tiling.rows,
        "LAYOUTS": tuple(triton.layout_number(layout) for layout in layouts), "OUTPUTS": tiling.outputs,
        "ASSEMBLY": assembly, "EARLY": target == "sm_90",
    }  # fmt: skip
    made = compile_kernel(triton._decode, target, arguments, **tiling.options(*layouts))
    # What does not fit at 64 rows is put aside before the loop and fetched behind it.
    most = 512 if mix == "Q6_K" else 160
    made.check(matrix=True, spilled=0 if rows < 64 else most if assembly else 16 if mix == "F16" else 0)
    if assembly:
        assert "wgmma" not in made.asm, "another matrix instruction, whose bits differ"
        for loop in made.ttgir.split("scf.for")[1:]:
            assert "convert_layout" not in loop[: loop.index("scf.yield")], "the operand is converted in the loop"
        assert "local_store" not in made.ttgir, "the operand goes through shared memory"
        assert_pairs_are_neighbours(made.ttgir)


@pytest.mark.parametrize(("target", "case"), compile_cases("expand", "expand compact", "prefill", "stage", "add parts"))
def test_the_others_compile(target: str, case: str) -> None:
    from draftwood.kernels.linear import triton

    f16, f32 = torch.float16, torch.float32
    expand = {"p_out": f16, "K": 5120, "TILE0": 4, "OUTPUTS": 128}
    sums = {"p_parts": f32, "p_x_factor": f32, "p_factor": f32, "p_out": f32, "N": 34816, "K": 5120, "P": 396}
    sums |= {"p_columns": torch.int32, "COUNT": 5, "REAL": 34816, "TILE_ROWS": 16, "OUTPUTS": 128, "ROWS": 4}
    sums |= {"DIRECT": True, "EARLY": target == "sm_90"}
    product = {"p_x": f16, "p_w": f16, "p_x_factor": f32, "p_factor": f32, "p_out": f32, "T": 2048, "K": 5120}
    kernel, arguments, options = {
        "expand": (
            triton._expand,
            expand | {"segment": segment("Q4_K"), "LAYOUT": triton.layout_number(LAYOUTS["Q4_K"])},
            {"num_warps": 8},
        ),
        "expand compact": (
            triton._expand,
            expand | {"segment": segment("Q6_K", "compact"), "LAYOUT": triton.layout_number(COMPACT["Q6_K"])},
            {"num_warps": 8},
        ),
        "prefill": (
            triton._prefill,
            product | {"REAL": 5120, "OUT_STRIDE": 5120} | triton._PREFILL,
            {"num_warps": 8, "num_stages": 3},
        ),
        "stage": (
            triton._stage,
            {
                "p_x": f32,
                "p_out": f16,
                "p_factor": f32,
                "rows": 5,
                "REAL": 576,
                "X_STRIDE": 576,
                "K": 640,
                "CHUNK": 2048,
            },
            {"num_warps": 4},
        ),
        "add parts": (triton._add_parts, sums, {"num_warps": 4}),
    }[case]
    compile_kernel(kernel, target, arguments, **options).check(matrix=case == "prefill")
