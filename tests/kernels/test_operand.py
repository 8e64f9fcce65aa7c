"""From products to the next operand: the reference by the layers' arithmetic, kernels by the unfused chain."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.kernels.activation import sigmoid, silu
from draftwood.kernels.draw import draw
from draftwood.kernels.layouts import LAYOUTS, STEP
from draftwood.kernels.linear.packing import PackedMatrix, pack
from draftwood.kernels.norm import rms_norm
from draftwood.kernels.operand import load_operands, reference
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.rows import ROWS, poisoned

EPS = 1e-6
HALF = 2.0**-11
"""Of a value's own size: what rounding to a half takes off."""


def random(*shape: int, device: str = "cpu", seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3).to(device)


def product(
    outputs: tuple[int, ...], inputs: int, programs: int, count: int, device: str, row: int = 0, seed: int = 1
) -> Any:
    """A product that was never multiplied: random parts for `count` rows from `row` on, NaN where a tile has none."""
    from draftwood.kernels.linear import triton

    made = torch.Generator().manual_seed(seed)
    matrices = []
    for real in outputs:
        padded = real + -real % 128
        words = torch.empty(padded // 32, inputs // STEP, 32, 4, 0, dtype=torch.int32, device=device)
        factor = torch.exp2(torch.randint(-3, 3, (padded,), generator=made).float()).to(device)
        matrices.append(PackedMatrix(LAYOUTS["Q8_0"], real, inputs, words, None, None, None, factor))
    joined = triton.join(matrices)
    n, steps = joined.padded[0], inputs // STEP
    tiles = n // 128
    _, rows = triton.padded_rows(count, triton.tiling_of(torch.device(device)))
    parts = torch.randn(triton.parts_of(tiles, steps, programs), 64, n, generator=made)
    for tile in range(tiles):
        first, last = (((at + 1) * programs - 1) // (tiles * steps) for at in (tile * steps, tile * steps + steps - 1))
        parts[last - first + 1 :, :, tile * 128 : tile * 128 + 128] = torch.nan
    x_factor = torch.exp2(torch.randint(-4, 4, (64,), generator=made).float())
    padding = torch.zeros(len(parts), rows - count, n)
    parts = torch.cat((parts[:, row : row + count], padding), 1).contiguous().to(device)
    x_factor = torch.cat((x_factor[row : row + count], torch.ones(rows - count))).to(device)
    return triton.Parts(parts, joined, x_factor, count, programs)


def order(width: int) -> Tensor:
    """The input at each place of a staged row."""
    place = torch.arange(width + -width % STEP)
    return place - place % 128 + place // 2 % 4 * 32 + place % 128 // 8 * 2 + place % 2


def restored(staged: Any, width: int) -> Tensor:
    """What was staged, [count, width]; padding must be zeros."""
    out = torch.empty(staged.halves.shape, device=staged.halves.device)
    out[:, order(width).to(out.device)] = staged.halves.float()
    assert not out[:, width:].any() and not out[staged.count :].any()
    return out[: staged.count, :width] * staged.factor[: staged.count, None]


def unfused(x: Tensor) -> Any:
    """x staged by the kernel that does nothing else."""
    from draftwood.kernels.linear import triton

    _, rows = triton.padded_rows(len(x), triton.tiling_of(x.device))
    return triton.Staged(*triton.stage(x, x.shape[1] + -x.shape[1] % STEP, rows), len(x))


def assert_same(made: Any, expected: Any) -> None:
    """Two operands have the same bits."""
    assert made.count == expected.count
    assert torch.equal(made.factor, expected.factor) and torch.equal(made.halves, expected.halves)


def assert_near(made: Any, expected: Tensor) -> None:
    """Rounded to halves of the row's own scale, whose smallest step is 2**-24."""
    off = (restored(made, expected.shape[1]) - expected).abs()
    assert (off <= HALF * 1.02 * expected.abs() + 2.0**-24 * made.factor[: made.count, None]).all(), off.max()
    largest = made.halves[: made.count].abs().amax(1)
    assert (largest <= 32768).all() and (largest >= 16383).all()


def test_reference_has_the_bits_of_the_layers() -> None:
    operands = load_operands("cpu")
    x, y, weight = random(5, 96), random(5, 96, seed=1), torch.rand(96)
    stream = x.clone()
    assert torch.equal(operands.add_norm(stream, None, weight, EPS), rms_norm(x, weight, EPS))
    assert torch.equal(operands.add_norm(stream, y, weight, EPS), rms_norm(x + y, weight, EPS))
    assert torch.equal(stream, x + y)
    both = random(5, 80)
    assert torch.equal(operands.silu_gate(both), silu(both[:, :40]) * both[:, 40:])
    mixed, z, norm = random(5, 3, 32), random(5, 96, seed=1), torch.rand(32)
    assert torch.equal(operands.gated_norm(mixed, z, norm, EPS), rms_norm(mixed, norm, EPS).flatten(1) * silu(z))
    query = random(5, 192).unflatten(1, (3, 2, 32))
    gates = query[:, :, 1]
    assert torch.equal(operands.gate(mixed, gates), mixed.flatten(1) * sigmoid(gates.flatten(1)))
    assert torch.equal(operands.gate(mixed.flatten(1), None), mixed.flatten(1))


def check_add_norm(width: int, inputs: int, programs: int, count: int, device: str) -> None:
    from draftwood.kernels.norm import triton as norms
    from draftwood.kernels.operand import triton

    x, weight = random(count, width, device=device), torch.rand(width, device=device)
    y = product((width,), inputs, programs, count, device)
    summed = y.tensor()
    alone = torch.zeros_like(x)
    with poisoned():
        triton.add_norm(alone, y, weight, EPS)
    assert torch.equal(alone, summed), "the sum of the parts"
    for other, values in ((y, summed), (summed, summed), (None, torch.zeros_like(x))):
        stream, expected_stream, reference_stream = x.clone(), x.clone(), x.clone()
        with poisoned():
            made = triton.add_norm(stream, other, weight, EPS)
        expected = norms.add_rms_norm(expected_stream, values, weight, EPS)
        assert torch.equal(stream, expected_stream)
        assert_near(made, reference.add_norm(reference_stream, values, weight, EPS))
        if width > STEP:  # Narrower rows are padded further here.
            assert_same(made, unfused(expected))


def check_silu_gate(width: int, inputs: int, programs: int, count: int, device: str, apart: bool) -> None:
    from draftwood.kernels.activation import triton as activations
    from draftwood.kernels.operand import triton

    both = product((width, width) if apart else (2 * width,), inputs, programs, count, device)
    both.x_factor[0] = 2.0**14
    values = both.tensor()
    with poisoned():
        made, of_tensor = triton.silu_gate(both), triton.silu_gate(values)
    assert_same(made, of_tensor)
    assert_same(made, unfused(activations.silu_gate(*values.split(width, 1))))
    assert_near(made, reference.silu_gate(values))


def check_gated_norm(heads: int, size: int, inputs: int, programs: int, count: int, device: str) -> None:
    """z between two other matrices."""
    from draftwood.kernels.delta_rule import triton as delta_rule
    from draftwood.kernels.operand import triton

    width = heads * size
    mixed, norm = random(count, heads, size, device=device), torch.rand(size, device=device)
    whole = product((width + 40, width, 48), inputs, programs, count, device)
    z = whole.tensor()[:, width + 40 : 2 * width + 40]
    with poisoned():
        made = triton.gated_norm(mixed, whole.columns(width + 40, 2 * width + 40), norm, EPS)
        of_tensor = triton.gated_norm(mixed, z, norm, EPS)
    assert_same(made, of_tensor)
    assert_same(made, unfused(delta_rule.gated_norm(mixed, z, norm, EPS)))
    assert_near(made, reference.gated_norm(mixed, z, norm, EPS))


def check_gate(heads: int, size: int, inputs: int, programs: int, count: int, device: str) -> None:
    from draftwood.kernels.operand import triton

    mixed = random(count, heads, size, device=device)
    whole = product((2 * heads * size, 64), inputs, programs, count, device)
    gates = whole.tensor()[:, : 2 * heads * size].unflatten(1, (heads, 2, size))[:, :, 1]
    with poisoned():
        made = triton.gate(mixed, whole.columns(0, 2 * heads * size).every(2 * size, size, 2 * size))
        of_view, of_copy = triton.gate(mixed, gates), triton.gate(mixed.flatten(1), gates.flatten(1))
        plain = triton.gate(mixed, None)
    assert_same(made, of_view)
    assert_same(made, of_copy)
    assert_near(made, reference.gate(mixed, gates))
    assert_same(plain, unfused(mixed.flatten(1)))


def check_refusals(device: str) -> None:
    from draftwood.kernels.operand import triton

    x, weight = random(4, 96, device=device), torch.rand(96, device=device)
    y = product((96, 40, 24), 256, 2, 4, device)
    with pytest.raises(ValueError, match="several"):
        y.columns(0, 136)
    with pytest.raises(ValueError, match="no column 160"):
        y.columns(136, 161)
    with pytest.raises(ValueError, match="multiples of 16"):
        triton.add_norm(x, y.columns(8, 96), weight, EPS)
    with pytest.raises(ValueError, match="4 rows x 40 for 4 x 96"):
        triton.add_norm(x, y.columns(96, 136), weight, EPS)
    with pytest.raises(ValueError, match="4 rows x 96 for 3 x 96"):
        triton.add_norm(x[:3], x, weight, EPS)
    with pytest.raises(ValueError, match="in place"):
        triton.add_norm(x[:, 1:], None, weight[1:], EPS)
    with pytest.raises(ValueError, match="have no"):
        y.columns(0, 96).every(40, 0, 8)
    with pytest.raises(ValueError, match="heads of 24"):
        triton.gated_norm(x.view(4, 4, 24), x, weight[:24], EPS)


def check_chain(device: str, width: int, hidden: int, count: int) -> None:
    """A feed-forward network in products and what lies between them, by its unfused chain."""
    from draftwood.kernels.activation import triton as activations
    from draftwood.kernels.linear import triton as linear
    from draftwood.kernels.norm import triton as norms
    from draftwood.kernels.operand import triton

    kind = BLOCK_TYPES["Q8_0"]
    gate_up, down = (
        linear.join([pack(draw(seed, kind, shape, 0.05, device), kind, shape[1])])
        for seed, shape in ((1, (2 * hidden, width)), (2, (width, hidden)))
    )
    x, weight = random(count, width, device=device), torch.rand(width, device=device)
    stream = x.clone()
    with poisoned():
        inner = triton.silu_gate(linear.multiply(triton.add_norm(x, None, weight, EPS), gate_up))
        made = triton.add_norm(x, linear.multiply(inner, down), weight, EPS)
    both = linear.decode(norms.rms_norm(stream, weight, EPS), gate_up)
    assert torch.equal(linear.multiply(unfused(norms.rms_norm(stream, weight, EPS)), gate_up).tensor(), both)
    values = linear.decode(activations.silu_gate(*both.split(hidden, 1)), down)
    assert_same(made, unfused(norms.add_rms_norm(stream, values, weight, EPS)))
    assert torch.equal(x, stream)


INTERPRETED = {
    "sums": "check_add_norm(160, 2048, 13, 3, 'cpu'); check_add_norm(40, 256, 2, 9, 'cpu')",
    "long sums": "check_add_norm(288, 1664, 20, 2, 'cpu'); check_add_norm(96, 2048, 16, 2, 'cpu')",
    "silu": "check_silu_gate(48, 256, 3, 2, 'cpu', True); check_silu_gate(160, 384, 5, 3, 'cpu', False)",
    "chunks": "check_silu_gate(4128, 256, 60, 1, 'cpu', False)",
    "gated norm": "check_gated_norm(3, 32, 512, 9, 9, 'cpu'); check_gated_norm(5, 16, 256, 4, 2, 'cpu')",
    "gate": "check_gate(3, 32, 512, 9, 3, 'cpu'); check_gate(5, 16, 256, 4, 2, 'cpu')",
    "chain": "check_chain('cpu', 288, 416, 9)",
    "refusals": "check_refusals('cpu')",
}


@pytest.mark.parametrize("case", INTERPRETED)
def test_interpreted(case: str) -> None:
    run_interpreted("tests.kernels.test_operand", INTERPRETED[case])


@pytest.mark.gpu
def test_on_a_gpu(gpu: str) -> None:
    """Sizes of the 27B (attention output, down, gate and up, gated delta net, attention gate) and of a small model."""
    for count in (1, 3, 16, 64):
        check_add_norm(5120, 6144, 264, count, gpu)
        check_add_norm(5120, 17408, 264, count, gpu)
        check_add_norm(576, 1536, 15, count, gpu)
        check_silu_gate(17408, 5120, 264, count, gpu, True)
        check_silu_gate(1536, 640, 30, count, gpu, False)
        check_gated_norm(48, 128, 5120, 264, count, gpu)
        check_gate(24, 256, 5120, 264, count, gpu)
        check_chain(gpu, 576, 1536, count)
    check_gated_norm(5, 16, 256, 4, 2, gpu)
    check_refusals(gpu)


def assert_alone(function: Callable[[int, int], tuple[Tensor, ...]]) -> None:
    """function(count, row) gives the rows of a pass of 64 that begins at 0 their bits in every shorter pass."""
    whole = function(64, 0)
    for count in ROWS:
        for row in {0, 64 - count, (64 - count) // 2}:
            for made, rows in zip(function(count, row), whole, strict=True):
                assert torch.equal(made[:count], rows[row : row + count]), f"{count} rows from {row}"


@pytest.mark.gpu
def test_rows_are_alone_on_a_gpu(gpu: str) -> None:
    from draftwood.kernels.operand import triton

    x, weight = random(64, 6144, device=gpu), torch.rand(6144, device=gpu)

    def norm_of(width: int, inputs: int, programs: int) -> Callable[[int, int], tuple[Tensor, ...]]:
        def norm(count: int, row: int) -> tuple[Tensor, ...]:
            stream = x[row : row + count, :width].clone()
            made = triton.add_norm(stream, product((width,), inputs, programs, count, gpu, row), weight[:width], EPS)
            return stream, made.halves, made.factor

        return norm

    def silu_of(count: int, row: int) -> tuple[Tensor, ...]:
        made = triton.silu_gate(product((17408, 17408), 5120, 264, count, gpu, row))
        return made.halves, made.factor

    def gated_norm_of(count: int, row: int) -> tuple[Tensor, ...]:
        z = product((10240, 6144, 96), 5120, 264, count, gpu, row).columns(10240, 16384)
        made = triton.gated_norm(x[row : row + count].unflatten(1, (48, 128)), z, weight[:128], EPS)
        return made.halves, made.factor

    def gate_of(count: int, row: int) -> tuple[Tensor, ...]:
        gates = product((12288, 1024), 5120, 264, count, gpu, row).columns(0, 12288).every(512, 256, 512)
        made = triton.gate(x[row : row + count], gates)
        return made.halves, made.factor

    for function in (norm_of(576, 1536, 15), norm_of(5120, 17408, 264), silu_of, gated_norm_of, gate_of):
        assert_alone(function)


def source(outputs: int, inputs: int, programs: int, first: int = 0, run: int = 0, stride: int = 0) -> tuple[int, ...]:
    """Columns of a product, as a kernel is compiled for them."""
    from draftwood.kernels.linear import triton

    most = triton.parts_of(outputs // 128, inputs // STEP, programs)
    return most, first, outputs, inputs, programs, run, stride


CASES = {
    "norm after down": ("norm", 5120, (5120, 17408)),
    "silu": ("gate", 17408, (34816, 5120)),
    "gated norm": ("gated norm", 6144, (16512, 5120, 10240)),
    "gate": ("gate", 6144, (13312, 5120, 256, 256, 512)),
    "norm after output": ("norm", 5120, (5120, 6144)),
    "norm alone": ("norm", 5120, None),
    "no gate": ("gate", 6144, None),
    "small norm": ("norm", 576, (640, 1536)),
    "small silu": ("gate", 1536, (3072, 640)),
    "many parts": ("norm", 1024, (1024, 17408)),
    "widest norm": ("norm", 8192, (8192, 28672)),
    "widest silu": ("gate", 20480, (40960, 5120)),
}


def compiled(target: str, case: str) -> Any:
    """A case of CASES for a target: kernel, width, and outputs, inputs and places of the product that it reads."""
    from draftwood.kernels.operand import triton

    f32 = torch.float32
    kind, width, read = CASES[case]
    early, place = target == "sm_90", None
    if read is not None:
        programs = min(264 if target.startswith("sm_") else 96, read[0] // 128 * (read[1] // STEP) // 4)
        place = source(*read[:2], programs, *read[2:])
    if place is not None and not place[5]:
        place = (*place[:5], width, width)
    pointers = None if place is None else (f32, f32, torch.uint8 if kind == "gate" else f32)
    arguments = {"p_out": torch.float16, "p_factor": f32, "count": 5, "WIDTH": width, "K": width + -width % STEP}
    arguments |= {"OUTPUTS": 128, "EARLY": early}
    if kind == "gate":
        chunk, warps = triton.gate_shape(width)
        silu = "silu" in case
        value = (*place[:1], width, *place[2:]) if silu else (0, 0, width, 0, 0, width, width)
        arguments |= {
            "value": pointers if silu else (f32, f32, f32),
            "gate": pointers,
            "VALUE": value,
            "GATE": place,
            "SILU": silu,
        }
        return compile_kernel(triton._gate, target, arguments | {"CHUNK": chunk}, num_warps=warps)
    block = triton.norm_block(width)
    arguments |= {"SOURCE": place, "BLOCK": block, "eps": EPS}
    if kind == "norm":
        arguments |= {"p_x": f32, "y": pointers, "p_weight": f32}
        return compile_kernel(triton._add_norm, target, arguments, num_warps=triton.norm_warps(width))
    arguments |= {"p_mixed": f32, "z": pointers, "p_norm": f32, "V": 128}
    warps = triton.gated_norm_warps(width)
    return compile_kernel(triton._gated_norm, target, arguments, num_warps=warps, enable_fp_fusion=False)


@pytest.mark.parametrize(("target", "case"), compile_cases(*CASES))
def test_compiles(target: str, case: str) -> None:
    # What does not fit in the widest rows is put aside once.
    compiled(target, case).check(spilled=16 if case == "widest silu" and target.startswith("sm_") else 0)


def lanes_of_sum(ttgir: str) -> list[str]:
    """How the last axis of the first block that is added up lies in registers and lanes."""
    name = re.search(r'"tt\.reduce".*?\}\) : \(tensor<[^>]*, (#\w+)>\)', ttgir, re.DOTALL)
    assert name is not None
    layout = re.search(rf"^{name[1]} = #ttg.blocked<(.*)>$", ttgir, re.MULTILINE)
    assert layout is not None
    return [axes.split(", ")[-1] for axes in re.findall(r"(?:PerThread|PerWarp) = \[(.*?)\]", layout[1])]


@pytest.mark.parametrize(("target", "case"), compile_cases("norm after down", "norm alone", "small norm"))
def test_sums_have_the_order_of_the_unfused_kernel(target: str, case: str) -> None:
    """Equal layouts of the added block: rows have the bits of `kernels/norm`, which only a GPU can show in full."""
    from draftwood.kernels.norm.triton import _rms_norm, shape_of

    width = CASES[case][1]
    block, warps = shape_of(width)
    f32 = torch.float32
    arguments = {"p_x": f32, "p_y": None, "p_weight": f32, "p_out": f32, "eps": EPS, "X_STRIDE": width}
    arguments |= {"Y_STRIDE": 0, "N": width, "BLOCK": block}
    wanted = compile_kernel(_rms_norm, target, arguments, num_warps=warps)
    assert lanes_of_sum(compiled(target, case).ttgir) == lanes_of_sum(wanted.ttgir)
