"""DESIGN law 1: in a decode pass a row's bits depend on nothing but the row, for 1 to 64 rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.kernels.activation import sigmoid, silu, softplus
from draftwood.kernels.hadamard import rotate as rotate_heads
from draftwood.kernels.hadamard import rotation as head_rotation
from draftwood.kernels.linear import LinearRequest, load_linear
from draftwood.kernels.norm import l2_norm, rms_norm
from draftwood.kernels.rope import frequencies, rotate, rotation

SHAPES = [(960, 576), (576, 576), (3072, 576), (576, 1536), (16, 64), (512, 128), (768, 256), (32, 5120), (32, 17408)]
ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 22, 23, 31, 32, 33, 40, 47, 63, 64]


def random_raw(name: str, rows: int, width: int) -> Tensor:
    """Weights in a block type: random codes with scales of a sane size."""
    kind = BLOCK_TYPES[name]
    generator = torch.Generator().manual_seed(rows * width)
    blocks = torch.randint(
        0, 256, (rows, width // kind.block_size, kind.type_size), generator=generator, dtype=torch.uint8
    )
    for offset in {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2)}.get(name, ()):
        blocks[..., offset + 1] = 0x20  # float16 exponent of about 2**-7
    if not kind.type_size % 2 and kind.block_size == 1:
        weight = torch.randn(rows, width, generator=generator) * 0.1
        return (weight if name == "F32" else weight.half()).view(torch.uint8)
    return blocks.flatten(1)


def assert_rows_are_alone(function, rows: Tensor) -> None:  # type: ignore[no-untyped-def]
    whole = function(rows)
    for count in ROWS:
        for first in {0, 64 - count, (64 - count) // 2}:
            part = function(rows[first : first + count].clone())
            assert torch.equal(part, whole[first : first + count]), f"{count} rows from {first}"


FORMS = [
    ("Q4_0", "auto", "int4"),
    ("Q4_1", "auto", "int4"),
    ("Q8_0", "auto", "int4"),
    ("Q4_K", "auto", "int4"),
    ("F32", "bfloat16", "bf16"),
    ("F32", "float32", "f32"),
]


@pytest.mark.parametrize(
    ("block_type", "dtype", "form", "shape"),
    [(*form, shape) for form in FORMS for shape in SHAPES if shape[1] % BLOCK_TYPES[form[0]].block_size == 0],
)
def test_linear(block_type: str, dtype: str, form: str, shape: tuple[int, int]) -> None:
    request = LinearRequest(BLOCK_TYPES[block_type], *shape, "cpu", dtype)
    weight = load_linear(random_raw(block_type, *shape), request)
    assert weight.form == form
    assert_rows_are_alone(weight.decode, torch.randn(64, shape[1], generator=torch.Generator().manual_seed(1)))


def test_the_head_of_the_demo_model() -> None:
    """The largest matrix in use on a CPU: 49152 x 576 in Q8_0, as two int4 products."""
    weight = load_linear(random_raw("Q8_0", 49152, 576), LinearRequest(BLOCK_TYPES["Q8_0"], 49152, 576, "cpu", "auto"))
    assert weight.form == "int4"
    rows = torch.randn(64, 576, generator=torch.Generator().manual_seed(3))
    whole = weight.decode(rows)
    for count, first in ((1, 0), (1, 63), (3, 20), (4, 60), (5, 1), (16, 48), (23, 9)):
        assert torch.equal(weight.decode(rows[first : first + count].clone()), whole[first : first + count])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_on_a_gpu(dtype: str) -> None:
    request = LinearRequest(BLOCK_TYPES["Q4_1"], 960, 576, "cuda", dtype)
    weight = load_linear(random_raw("Q4_1", 960, 576).cuda(), request)
    assert_rows_are_alone(weight.decode, torch.randn(64, 576, device="cuda"))


@pytest.mark.parametrize("width", [4, 6, 33, 64, 100, 576, 1536])
@pytest.mark.parametrize("name", ["sigmoid", "silu", "softplus", "exp", "rms_norm", "l2_norm", "rope"])
def test_elementwise(name: str, width: int, device: str) -> None:
    rows = torch.randn(64, width, generator=torch.Generator().manual_seed(width)).to(device) * 3
    turn = rotation(torch.arange(64, device=device) + 1000, frequencies(8, 1e6).to(device))
    heads = torch.randn(64, 3, 16, generator=torch.Generator().manual_seed(0)).to(device)
    if name == "rope":
        for pairing in ("adjacent", "halves"):
            whole = rotate(heads, turn, pairing)
            for count in ROWS:
                assert torch.equal(rotate(heads[-count:].clone(), turn[-count:].clone(), pairing), whole[-count:])
        return
    weight = torch.rand(width, device=device)
    functions = {
        "sigmoid": sigmoid,
        "silu": silu,
        "softplus": softplus,
        "exp": torch.exp,
        "rms_norm": lambda x: rms_norm(x, weight, 1e-6),
        "l2_norm": lambda x: l2_norm(x, 1e-6),
    }
    assert_rows_are_alone(functions[name], rows)


@pytest.mark.parametrize("positions", [0, 1000, 100_000, 262_143])
def test_rotation_angles_do_not_depend_on_the_other_rows(positions: int, device: str) -> None:
    rates = frequencies(64, 1e7).to(device)
    whole = rotation(torch.arange(64, device=device) + positions, rates)
    for row in (0, 1, 13, 63):
        assert torch.equal(rotation(torch.tensor([row + positions], device=device), rates)[0], whole[row])


@pytest.mark.parametrize("width", [16, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 8, 9, 24, 32])
def test_rotated_heads(width: int, heads: int, device: str) -> None:
    """Queries, keys and values of KV types that rotate; the heads of a pass's rows are rows of one product."""
    there, back = head_rotation(width, device)
    rows = torch.randn(64, heads, width, generator=torch.Generator().manual_seed(heads)).to(device)
    assert_rows_are_alone(lambda x: rotate_heads(x, there), rows)
    assert_rows_are_alone(lambda x: rotate_heads(x, back), rows.flatten(1))


def test_rotated_heads_of_a_prompt_are_those_of_its_granules(device: str) -> None:
    there, _ = head_rotation(64, device)
    rows = torch.randn(320, 3, 64, generator=torch.Generator().manual_seed(0)).to(device)
    whole = rotate_heads(rows, there)
    for first, end in ((0, 64), (64, 192), (256, 320)):
        assert torch.equal(rotate_heads(rows[first:end].clone(), there), whole[first:end])


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0", "Q4_K"])
def test_int4_is_the_dequantised_matrix(name: str) -> None:
    """Only the scales' and the activations' bfloat16 rounding is between them."""
    shape = (64, 256)
    raw = random_raw(name, *shape)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(2))
    exact = load_linear(raw, LinearRequest(BLOCK_TYPES[name], *shape, "cpu", "float32")).decode(x)
    fast = load_linear(raw, LinearRequest(BLOCK_TYPES[name], *shape, "cpu", "auto")).decode(x)
    assert float((fast - exact).norm() / exact.norm()) < 1e-2
