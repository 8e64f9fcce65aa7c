"""The KV types' Triton functions: the bytes and the values of the planes, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from draftwood.cache.base import Plane
from draftwood.cache.codecs import has_codec
from draftwood.cache.coded import CodedPlane
from draftwood.cache.registry import KV_TYPES, kv_spec, load_plane
from draftwood.cache.sphere import SpherePlane, codebook
from draftwood.kernels.norm.reference import ordered_sum
from tests.kernels.interpreting import run_interpreted

WIDTHS = (64, 128, 256)


def rows_of(width: int, count: int) -> Tensor:
    """float32 [count, 2, width]: of all sizes, and with the ties and zeros on which encodings part."""
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(count, 2, width, generator=generator)
    x *= 10 ** (6 * torch.rand(count, 2, 1, generator=generator) - 3)
    steps = torch.arange(width) % 32
    x[0] = 0.0
    x[1, 0], x[1, 1] = -0.0, torch.where(steps % 2 == 0, 0.0, -0.0)
    x[2, 0], x[2, 1] = 1.5, -2.5e-3
    x[3, 0], x[3, 1] = steps - 8.0, 8.0 - steps  # Both extremes, and all levels.
    x[4, 0], x[4, 1] = (steps - 16) / 2 + 0.25, (16.0 - steps) / 2  # Middles between levels.
    x[5, 0], x[5, 1] = steps / 2, -steps / 2.0
    x[6, 0], x[6, 1] = (steps % 8 - 4) * 31.75, torch.where(steps == 5, 127.0, steps - 15.5)
    x[7, 0] = torch.where(torch.arange(width) == 9, -3.0, 0.0)
    x[7, 1] = torch.where(steps == 30, 60000.0, 1e-3)
    return x


def telling_rows(plane: SpherePlane) -> Tensor:
    """float32 [2, D] on which it shows whether a level's cell has its lower edge, and in what order squares are added:
    a unit vector with a coordinate on an edge, and a row that another order would give another norm."""
    width, generator = plane.head_dim, torch.Generator().manual_seed(plane.bits)
    levels = codebook(width, plane.bits, "cpu").positive
    x = torch.randn(1 << 8, width, generator=generator)
    x[:, 0] = (levels[-1] + levels[-2]) / 2
    x[:, 1:] *= ((1 - x[:, :1] ** 2) / x[:, 1:].square().sum(-1, keepdim=True)).sqrt()
    on_edge = x[ordered_sum(x.square()).squeeze(-1) == 1][0]
    while True:
        x = torch.randn(1 << 14, width, generator=generator)
        neighbours = x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        one, other = (plane.encode(rows)["norm"] for rows in (x, neighbours))
        if one.ne(other).any():
            return torch.stack((on_edge, x[one.ne(other).squeeze(-1)][0]))


def exact_halves(plane: Plane, fields: dict[str, Tensor]) -> Tensor:
    """The values of rows as halves, their exact sums rounded once."""
    if not isinstance(plane, CodedPlane):
        return fields["data"].float().clamp(-65504, 65504).half()
    if "minimum" not in fields:
        return plane.decode(fields).half()
    with mock.patch.object(Tensor, "float", Tensor.double):
        return torch.from_numpy(plane.decode(fields).numpy().astype("float16"))  # torch would round to float32 first.


def check_bits(device: str, kind: str, width: int, count: int) -> None:
    """Bytes of the rows as they are given, then values in pieces of every width that attention asks for."""
    from draftwood.cache.codecs import kept_rows
    from draftwood.kernels.kv_store.triton import store_rows
    from tests.kernels.codec_kernel import load_rows

    spec = kv_spec(kind)
    made, expected = load_plane(spec)(2, width, 8, device), load_plane(spec)(2, width, 8, "cpu")
    x = rows_of(width, count)
    if isinstance(expected, SpherePlane):
        x[8] = telling_rows(expected)
    if device == "cpu" and kind == "bf16":
        x = x.bfloat16().float()  # Triton's interpreter cuts off what a device rounds.
    kept = kept_rows(spec, made)
    as_given = replace(kept, codec=replace(kept.codec, rotated=False))
    store_rows(x.to(device), x.to(device), as_given, as_given, 5)
    if isinstance(expected, CodedPlane):
        for name, field in expected.encode(x).items():
            expected.buffers()[name][:, 5 : 5 + count] = field.transpose(0, 1)
    else:
        expected.write(x, 5)
    written = {name: buffer[:, 5 : 5 + count] for name, buffer in expected.buffers().items()}
    for name, buffer in made.buffers().items():
        one, two = (field.contiguous().view(torch.uint8) for field in (buffer[:, 5 : 5 + count].cpu(), written[name]))
        assert torch.equal(one, two), f"{kind}, {width}: {name} of rows {(one != two).any(-1).nonzero().tolist()}"
    exact = exact_halves(expected, written)
    for piece in {64, 128, 256, width}:
        if piece <= width:
            out = torch.full((2, 64, width), torch.nan, dtype=torch.float16, device=device)
            load_rows[(2,)](*kept.pointers, out, kept.rows, 5, count, LOAD=kept.codec.load, N=64, WIDTH=piece, D=width)
            assert torch.equal(out[:, :count].cpu(), exact), f"{kind}, {width} in pieces of {piece}"
            assert not out[:, count:].any(), f"{kind}, {width}: rows that are not asked for"


def check_interpreted(kinds: list[str], width: int) -> None:
    """Triton's interpreter rounds a product before its sum; a device does not."""
    from triton.runtime import interpreter

    def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        exact = x.data.astype("float64") * y.data + z.data
        return interpreter.TensorHandle(exact.astype(x.data.dtype), x.dtype.scalar)

    with mock.patch.object(interpreter.InterpreterBuilder, "create_fma", fma):
        for kind in kinds:
            check_bits("cpu", kind, width, 16)


def check_permutations(width: int) -> None:
    """The sphere types as NVIDIA decodes them, whose byte permutation the interpreter does not have."""
    import triton.language as tl

    from draftwood.cache.codecs import sphere
    from tests.kernels.codec_kernel import permuted

    with (
        mock.patch.object(sphere, "on_nvidia", lambda: tl.constexpr(True)),
        mock.patch.object(sphere, "_permuted", permuted),
    ):
        for kind in ("tq2_0", "tq3_0", "tq4_0"):
            check_bits("cpu", kind, width, 16)


def test_every_type_has_one() -> None:
    assert all(has_codec(spec) for spec in KV_TYPES.values())


@pytest.mark.parametrize("width", WIDTHS)
def test_interpreted(width: int) -> None:
    run_interpreted("tests.kernels.test_codecs", f"check_interpreted({list(KV_TYPES)}, {width})")


@pytest.mark.parametrize("width", WIDTHS)
def test_permutations_interpreted(width: int) -> None:
    run_interpreted("tests.kernels.test_codecs", f"check_permutations({width})")


@pytest.mark.gpu
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", list(KV_TYPES))
def test_on_a_gpu(gpu: str, kind: str, width: int) -> None:
    check_bits(gpu, kind, width, 60)
