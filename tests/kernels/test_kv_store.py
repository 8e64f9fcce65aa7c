"""Rows into a KV cache: as the planes themselves encode and move them, and law 1 bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from draftwood.cache.base import Plane
from draftwood.cache.registry import KV_TYPES, kv_spec, load_plane
from draftwood.kernels.codec import KeptRows
from draftwood.kernels.kv_store import load_commit_rows, load_rotate_rows, reference, row_table
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.kv_pairs import PAIRS, kv_cases, pointers, split_case
from tests.kernels.rows import assert_rows_are_alone, poisoned


def plane_of(kind: str, groups: int, width: int, capacity: int, device: str) -> Plane:
    """A plane full of NaN, or of codes 127."""
    plane = load_plane(kv_spec(kind))(groups, width, capacity, device)
    for buffer in plane.buffers().values():
        buffer.fill_(torch.nan if buffer.is_floating_point() else 127)
    return plane


def kept(kind: str, plane: Plane) -> KeptRows:
    from draftwood.cache.codecs import kept_rows

    return kept_rows(kv_spec(kind), plane)


def random(*shape: int, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)


def bits(buffer: Tensor) -> Tensor:
    return buffer.contiguous().view(torch.uint8)


def assert_same_rows(made: Plane, expected: Plane, start: int, stop: int, rotated: bool) -> None:
    """Equal buffers; written rows of a rotated type up to the rounding of the rotation, so all but ties as codes."""
    for name, one in made.buffers().items():
        other = expected.buffers()[name]
        for rows in (slice(0, start), slice(stop, None), *([] if rotated else [slice(start, stop)])):
            assert torch.equal(bits(one[:, rows]), bits(other[:, rows])), f"{name}, rows {rows}"
    one, other = made.read(start, stop), expected.read(start, stop)
    off = (one - other).abs()
    assert off.sum() <= 1e-3 * other.abs().sum() and (off > 1e-5).sum() <= 1e-2 * off.numel()


def check_store(device: str, key: str, value: str, rows: int, groups: int, width: int) -> None:
    """At a place known on the host and at one known on the device, some rows left out."""
    from draftwood.kernels.kv_store.triton import store_rows

    both = random(rows, 2 * groups + 1, width, device=device)
    if device == "cpu":
        both = both.bfloat16().float()  # Triton's interpreter cuts off what a device rounds.
    both[0, 0] = 0
    k, v = both[:, :groups], both[:, groups : 2 * groups]
    for offset, at, count in ((70, None, rows), (3, 5, rows), (0, 9, rows - 1), (0, 2, 0)):
        made, expected = ([plane_of(kind, groups, width, 8 + rows, device) for kind in (key, value)] for _ in range(2))
        for plane, x in zip(expected, (k, v), strict=True):
            plane.write(x[:count], offset + (at or 0))
        place, some = (None if number is None else torch.tensor([number], device=device) for number in (at, count))
        store_rows(k, v, kept(key, made[0]), kept(value, made[1]), offset, place, some if at else None)
        first = offset + (at or 0)
        for kind, one, other in zip((key, value), made, expected, strict=True):
            assert_same_rows(one, other, first, first + count, kept(kind, one).codec.rotated)
    with pytest.raises(ValueError, match="rows at"):
        store_rows(k, v, kept(key, made[0]), kept(value, made[1]), made[0].rows)


def check_rotate(device: str, rows: int, heads: int, width: int) -> None:
    from draftwood.kernels.kv_store.triton import rotate_rows

    x = random(rows, heads + 1, width, device=device)[:, 1:]
    for inverse in (False, True):
        with poisoned():
            turned = rotate_rows(x, inverse)
        torch.testing.assert_close(turned, reference.rotate_rows(x, inverse), rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(rotate_rows(turned, not inverse), x, rtol=1e-5, atol=2e-6)


def check_commit(device: str) -> None:
    """Buffers of every unit, and paths of every length."""
    from draftwood.kernels.kv_store.triton import commit_rows

    capacity, staging = 30, 94
    planes = [plane_of(kind, 2, 64, capacity, device) for kind in KV_TYPES]
    buffers = [buffer for plane in planes for buffer in plane.buffers().values()]
    buffers += [torch.empty(2, capacity + 128, n, dtype=torch.uint8, device=device) for n in (1, 3, 6, 12)]
    for buffer in buffers:
        bits(buffer)[:] = 0
        buffer.view(torch.uint8).random_(generator=torch.Generator(device).manual_seed(0))
    path = torch.tensor([0, 2, 3, 7, *range(9, 40)], device=device)
    for committed, count in ((0, 1), (7, 5), (12, 18), (3, 0)):
        expected = row_table([buffer.clone() for buffer in buffers])
        kept_count, first = torch.tensor(count, device=device), torch.tensor([committed], device=device)
        reference.commit_rows(expected, path, kept_count, first, staging)
        commit_rows(row_table(buffers), path, kept_count, first, staging)
        for buffer, other in zip(buffers, expected.buffers, strict=True):
            assert torch.equal(bits(buffer), bits(other)), f"{buffer.dtype} {tuple(buffer.shape)}"


def check_small(device: str) -> None:
    check_store(device, "bf16", "tq3_0", 2, 1, 64)
    check_store(device, "q8_0", "f16", 3, 2, 128)
    check_store(device, "f32", "q8_0", 1, 3, 32)
    check_rotate(device, 3, 2, 64)
    check_rotate(device, 1, 1, 256)
    check_commit(device)


def test_kernels_interpreted() -> None:
    run_interpreted("tests.kernels.test_kv_store", "check_small('cpu')")


def test_forms_of_a_cpu() -> None:
    x = random(2, 3, 32, device="cpu")
    turn = load_rotate_rows("cpu")
    torch.testing.assert_close(turn(turn(x), inverse=True), x)
    buffer = random(1, 140, 4, device="cpu")
    moved = buffer[:, 76 + 5].clone()
    load_commit_rows("cpu")(row_table([buffer]), torch.tensor([5]), torch.tensor(1), torch.tensor([3]), 76)
    assert torch.equal(buffer[:, 3], moved)
    with pytest.raises(ValueError, match="one table"):
        row_table([buffer, buffer[:, 1:].clone()])


@pytest.mark.gpu
def test_kernels_on_a_gpu(gpu: str) -> None:
    check_small(gpu)
    check_rotate(gpu, 64, 24, 256)


@pytest.mark.gpu
@pytest.mark.parametrize("pair", PAIRS)
def test_store_on_a_gpu(gpu: str, pair: str) -> None:
    key, value, _ = split_case(f"{pair} 0")
    check_store(gpu, key, value, 64, 4, 256)
    check_store(gpu, key, value, 200, 8, 128)
    check_store(gpu, key, value, 5, 3, 64)


def stored(kind: str, width: int, device: str) -> Callable[[Tensor], Tensor]:
    """A function from rows to the bytes of their fields, wherever they are put."""
    from draftwood.kernels.kv_store.triton import store_rows

    def bytes_of(x: Tensor) -> Tensor:
        plane, other = (plane_of(kind, 4, width, len(x), device) for _ in range(2))
        place = torch.tensor([len(x) % 7], device=device)
        store_rows(x, x, kept(kind, plane), kept(kind, other), 2, place)
        fields = [field[:, len(x) % 7 + 2 :][:, : len(x)].transpose(0, 1) for field in plane.buffers().values()]
        return torch.cat([bits(field) for field in fields], -1)

    return bytes_of


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("kind", list(KV_TYPES))
def test_rows_are_alone_on_a_gpu(gpu: str, kind: str, width: int) -> None:
    assert_rows_are_alone(stored(kind, width, gpu), random(64, 4, width, device=gpu))


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128, 256])
def test_rotated_rows_are_alone_on_a_gpu(gpu: str, width: int) -> None:
    from draftwood.kernels.kv_store.triton import rotate_rows

    assert_rows_are_alone(rotate_rows, random(64, 4, width, device=gpu))


@pytest.mark.parametrize(("target", "case"), kv_cases(tuple(KV_TYPES)))
def test_storing_compiles(target: str, case: str) -> None:
    from draftwood.cache.codecs import load_codec
    from draftwood.kernels.kv_store import triton

    kind, _, width = split_case(case)
    codec = load_codec(kv_spec(kind))
    arguments = triton._turn(width) | pointers(kind, width, "k") | pointers(kind, width, "v") | {
        "p_k": torch.float32, "p_v": torch.float32, "p_signs": torch.float32, "p_at": torch.int64,
        "p_count": torch.int64, "offset": 3, "plane_rows": 4224, "K_ROW": 8 * width, "V_ROW": 8 * width,
        "K_HEAD": width, "V_HEAD": width, "STORE_K": codec.store, "STORE_V": codec.store, "TURN_K": codec.rotated,
        "TURN_V": codec.rotated,
    }  # fmt: skip
    # NVIDIA's division calls a function for its rare cases, which keeps eight bytes on a stack.
    spilled = 8 if target.startswith("sm_") else 0
    compile_kernel(triton._store_rows, target, arguments, num_warps=1, enable_fp_fusion=False).check(spilled=spilled)


@pytest.mark.parametrize(("target", "case"), compile_cases("256", "128", "64"))
def test_rotating_and_committing_compile(target: str, case: str) -> None:
    from draftwood.kernels.kv_store import triton

    width = int(case)
    arguments = triton._turn(width) | {
        "p_x": torch.float32, "p_signs": torch.float32, "p_out": torch.float32, "ROW": 24 * width, "HEAD": width,
        "H": 24, "INVERSE": True,
    }  # fmt: skip
    compile_kernel(triton._rotate_rows, target, arguments, num_warps=1).check()
    arguments = dict.fromkeys(("p_addresses", "p_path", "p_count", "p_committed"), torch.int64)
    sizes = {"plane_rows": 4224, "staging": 4160, "ROWS": 16, "UNITS": width // 8}
    compile_kernel(triton._commit_rows, target, arguments | sizes, num_warps=4).check()
