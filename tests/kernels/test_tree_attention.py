"""Attention of a decode pass over kept rows: by the definition, and law 1 bit for bit."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from draftwood.batch import MAX_ROWS
from draftwood.cache.registry import kv_spec, load_plane
from draftwood.errors import DeviceError
from draftwood.kernels.attention import attend_row, load_attend_tree
from draftwood.kernels.chunks import chunk_of, start_of, state_shape
from tests.kernels.compiling import compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.kv_pairs import PAIRS, kv_cases, loads, plane_for, split_case
from tests.kernels.rows import poisoned


@dataclass
class Case:
    """A cache of C committed rows and a tree: what `attend_tree` takes, and what it should give.

    rows: the rows of K and of V [C + nodes, G, D], the nodes' after the committed ones.
    """

    q: Tensor
    rows: tuple[Tensor, Tensor]
    parents: list[int]
    kinds: tuple[str, str]
    capacity: int
    committed: int

    def __post_init__(self) -> None:
        device, (_, groups, width) = str(self.q.device), self.rows[0].shape
        self.specs = [kv_spec(kind) for kind in self.kinds]
        self.planes = [load_plane(spec)(groups, width, self.capacity, device) for spec in self.specs]
        for plane, rows in zip(self.planes, self.rows, strict=True):
            for buffer in plane.buffers().values():
                buffer.fill_(torch.nan if buffer.is_floating_point() else 127)
            plane.write(rows[: self.committed], 0)
            plane.write(rows[self.committed :], plane.staging)
        self.paths: list[list[int]] = []
        for node, parent in enumerate(self.parents):
            self.paths.append([*(self.paths[parent] if parent >= 0 else []), node])

    def attend(self, nodes: list[int] | None = None) -> Tensor:
        """All nodes, or a pass of some of them, each with its ancestors' numbers."""
        from draftwood.cache.codecs import kept_rows
        from draftwood.kernels.attention.triton import attend_tree

        nodes = list(range(len(self.parents))) if nodes is None else nodes
        device, staging = self.q.device, self.planes[0].staging
        ancestors = torch.full((len(nodes), MAX_ROWS), 1 << 20, dtype=torch.int32)
        for row, node in enumerate(nodes):
            ancestors[row, : len(self.paths[node])] = torch.tensor(self.paths[node])
        depth = torch.tensor([len(self.paths[node]) - 1 for node in nodes], device=device)
        keys, values = (kept_rows(*both) for both in zip(self.specs, self.planes, strict=True))
        committed = torch.tensor([self.committed], device=device)
        with poisoned():
            return attend_tree(
                self.q[nodes], keys, values, committed, depth, ancestors.to(device), staging, self.q.shape[-1] ** -0.5
            )

    def expected(self, node: int) -> Tensor:
        """The reference on the node's path laid out."""
        at = [*range(self.committed), *(self.planes[0].staging + ancestor for ancestor in self.paths[node])]
        keys, values = (plane.read(0, plane.rows)[:, at] for plane in self.planes)
        return attend_row(self.q[node], keys, values, self.q.shape[-1] ** -0.5)

    def plainly(self, node: int) -> Tensor:
        """The node as plain decoding meets it: its ancestors are committed, and it is alone."""
        path = self.paths[node]
        at = [*range(self.committed), *(self.committed + ancestor for ancestor in path)]
        keys, values = (rows[at] for rows in self.rows)
        committed = self.committed + len(path) - 1
        return Case(self.q[node : node + 1], (keys, values), [-1], self.kinds, self.capacity, committed).attend()


def case(
    device: str, committed: int, nodes: int, kinds: str = "q8_0/f16", heads: int = 6, groups: int = 2, width: int = 64,
    capacity: int | None = None, seed: int = 0,
) -> Case:  # fmt: skip
    """A random tree on random rows; every third node continues the last one, so that some paths are long."""
    generator = torch.Generator().manual_seed(seed)
    draw = random.Random(seed)
    key, slash, value = kinds.partition("/")
    q, *rows = (
        torch.randn(n, h, width, generator=generator).to(device)
        for n, h in ((nodes, heads), (committed + nodes, groups), (committed + nodes, groups))
    )
    parents = [-1] + [node - 1 if node % 3 else draw.randrange(node) for node in range(1, nodes)]
    room = committed + nodes if capacity is None else capacity
    return Case(3 * q, (rows[0], rows[1]), parents, (key, value if slash else key), room, committed)


def check_close(made: Case, tolerance: float = 2e-3) -> None:
    out = made.attend()
    expected = torch.stack([made.expected(node) for node in range(len(made.parents))])
    error = (out - expected).norm() / expected.norm()
    assert error < tolerance, f"{made.kinds}, C = {made.committed}, {len(made.parents)} nodes: {error:.1e}"


def check_alone(made: Case, parts: list[list[int]], plain: list[int]) -> None:
    """The same bits in passes of other nodes and in plain decoding."""
    out = made.attend()
    for part in parts:
        assert torch.equal(made.attend(part), out[part]), f"C = {made.committed}, nodes {part}"
    for node in plain:
        assert torch.equal(made.plainly(node)[0], out[node]), f"C = {made.committed}, node {node} in plain decoding"


def test_chunks_are_those_of_the_position() -> None:
    for position in [*range(9000), (1 << 18) - 1, 1 << 18, (1 << 23) + 12345]:
        chunk = chunk_of(position)
        assert start_of(chunk) <= position < start_of(chunk + 1)
    assert [start_of(chunk) for chunk in (0, 1, 31, 32, 33, 47, 48, 80, 81, 96, 128)] == [
        0, 128, 3968, 4096, 4352, 7936, 8192, 1 << 15, (1 << 15) + 2048, 1 << 16, 1 << 17
    ]  # fmt: skip
    assert state_shape(16, 24, 4, 256, (1 << 18) - 64) == (192, 4, 96, 258)


def check_types(device: str, pairs: tuple[str, ...] = ("f16/q8_0", "q5_1/q4_0", "tq4_0/tq3_0", "f32/tq2_0")) -> None:
    for kinds in pairs:
        check_close(case(device, 37, 3, kinds, heads=3, groups=1))
    huge = case(device, 20, 3, "bf16", heads=2, groups=1)
    huge.q *= 1e6
    huge.q[1] *= 1e-12
    check_close(huge)
    made = case(device, 33, 2, "f32", heads=2, groups=1, width=32)
    for buffer in made.planes[1].buffers().values():
        buffer[:, 3] = 1e30
    assert made.attend().isfinite().all(), "rows beyond halves"


def check_edges(device: str) -> None:
    for committed in (0, 1, 31, 32, 33, 127, 128, 129):
        check_close(case(device, committed, 3, heads=2, groups=2, width=32))
    check_close(case(device, 100, 7, heads=4, groups=4, width=32))
    check_close(case(device, 40, 2, heads=16, groups=1, width=128))
    check_close(case(device, 12, 11, heads=9, groups=3))
    check_close(
        case(device, 4350, 3, heads=1, groups=1, width=32)
    )  # Where chunks are longer, and over the edge of one.


def check_interpreted_alone() -> None:
    """NumPy's products depend on a row's place among others, so each row gets a product of its own."""
    product = np.matmul

    def rowwise(a: np.ndarray, b: np.ndarray, dtype: type) -> np.ndarray:
        return np.concatenate([product(row[None], b, dtype=dtype) for row in a])

    with mock.patch("numpy.matmul", rowwise):
        check_alone(case("cpu", 20, 14, heads=2, groups=1), [[13], [3, 2, 1], [*range(8)]], [0, 7, 13])
        check_alone(case("cpu", 122, 10, heads=3, groups=1), [[9], [4, 8]], [0, 5, 9])


@pytest.mark.parametrize("check", ["check_types('cpu')", "check_edges('cpu')", "check_interpreted_alone()"])
def test_kernel_interpreted(check: str) -> None:
    run_interpreted("tests.kernels.test_tree_attention", check)


def test_a_cpu_has_no_form() -> None:
    with pytest.raises(DeviceError, match="runs on a GPU"):
        load_attend_tree("cpu")


@pytest.mark.gpu
def test_kernel_on_a_gpu(gpu: str) -> None:
    check_types(gpu)
    check_edges(gpu)


HEADS = {256: (24, 4), 128: (32, 8), 64: (9, 3)}
"""Query heads and those of K and V, by D."""


@pytest.mark.gpu
@pytest.mark.parametrize("pair", PAIRS)
def test_types_on_a_gpu(gpu: str, pair: str) -> None:
    for committed in (0, 33, 129, 4096, 9000):
        for width, (heads, groups) in HEADS.items():
            check_close(case(gpu, committed, 17, pair, heads=heads, groups=groups, width=width))


SIZES = (1, 2, 5, 9, 15, 16, 17, 23, 32, 41, 48, 63, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("committed", [0, 1, 31, 32, 33, 127, 128, 129, 4095, 4096, 4200, 70000])
@pytest.mark.parametrize("kinds", ["q8_0", "f16"])
def test_rows_are_alone_on_a_gpu(gpu: str, kinds: str, committed: int) -> None:
    """In passes of every size, in any order, and in plain decoding."""
    draw = random.Random(committed)
    made = case(gpu, committed, 64, kinds, heads=24, groups=4, width=256)
    parts = [draw.sample(range(64), size) for size in SIZES] + [[*range(size)] for size in SIZES]
    check_alone(made, parts, [0, 1, 2, 31, 63, max(range(64), key=lambda node: len(made.paths[node]))])


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("pair", PAIRS)
def test_rows_of_every_type_are_alone_on_a_gpu(gpu: str, pair: str, width: int) -> None:
    """The same at the edges of blocks and chunks."""
    draw, (heads, groups) = random.Random(width), HEADS[width]
    for committed in (0, 31, 128, 4095):
        made = case(gpu, committed, 64, pair, heads=heads, groups=groups, width=width)
        parts = [draw.sample(range(64), size) for size in SIZES] + [[*range(size)] for size in SIZES]
        check_alone(made, parts, [0, 1, 63, max(range(64), key=lambda node: len(made.paths[node]))])


@pytest.mark.gpu
@pytest.mark.parametrize("committed", [33, 126, 4090])
def test_a_long_chain_is_plain_decoding_on_a_gpu(gpu: str, committed: int) -> None:
    """64 nodes that lead over blocks and chunks."""
    made = case(gpu, committed, 64, heads=24, groups=4, width=256)
    made.parents = [*range(-1, 63)]
    made.__post_init__()
    check_alone(made, [[63], [*range(40)]], [*range(64)])


@pytest.mark.gpu
def test_a_captured_pass_serves_every_length(gpu: str) -> None:
    from draftwood.cache.codecs import kept_rows

    made = case(gpu, 300, 8, heads=24, groups=4, width=256)
    keys, values = (kept_rows(*both) for both in zip(made.specs, made.planes, strict=True))
    committed, depth = torch.tensor([300], device=gpu), torch.zeros(8, dtype=torch.int64, device=gpu)
    nodes = torch.arange(8, dtype=torch.int32, device=gpu).unsqueeze(1)

    def attend() -> Tensor:
        return load_attend_tree(gpu)(made.q, keys, values, committed, depth, nodes, made.planes[0].staging, 0.0625)

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend()
    for length in (300, 0, 128, 171):
        committed.fill_(length)
        graph.replay()
        assert torch.equal(out, attend()), f"C = {length}"


def spilled_by(target: str, key: str, value: str) -> int:
    """Bytes that may be put aside."""
    if target in {"sm_86", "sm_89"}:
        return 8  # Two registers of a mixed pair of types, in the launch that is mostly latency.
    return 24 if target == "gfx1100" and "f32" in (key, value) else 0  # Nineteen of a type that is for checking.


def tiling_for(target: str) -> Any:
    """The tiling of a target's devices."""
    from draftwood.kernels.attention import triton

    return triton.AMD if target.startswith("gfx") else triton.NVIDIA


@pytest.mark.parametrize(("target", "case"), kv_cases(hopper=False))
def test_compiles(target: str, case: str) -> None:
    from draftwood.kernels.attention import triton

    key, value, width = split_case(case)
    heads, groups = HEADS[width]
    tiling = tiling_for(target)
    block = tiling.block(plane_for(key, width), plane_for(value, width))
    arguments: dict[str, object] = loads(key, value, width) | {
        "p_q": torch.float16, "p_mixes": torch.float32, "p_sums": torch.float32, "p_committed": torch.int64,
        "p_factor": torch.float32, "all_rows": 96, "plane_rows": 4224, "width": width, "H": heads, "G": groups,
        "KEYS": block["KEYS"], "PIECE": width if tiling.piece is None else min(tiling.piece, width), "D": width,
    }  # fmt: skip
    options = {"num_warps": tiling.warps, "num_stages": block["num_stages"]}
    tail = {"p_depth": torch.int64, "p_ancestors": torch.int32, "staging": 4160, "path_stride": 64}
    launches = [("_bulk", {"ROWS": rows}) for rows in tiling.rows] + [("_tail", tail | {"ROWS": tiling.tail})]
    for kernel, more in launches:
        compiled = compile_kernel(getattr(triton, kernel), target, arguments | more, **options)
        compiled.check(matrix=True, spilled=spilled_by(target, key, value))
        # What a row's sums are added up by must be the same in all of them.
        if target.startswith("sm_"):
            layouts = set(re.findall(r"warpsPerCTA = (\[.*?\]), instrShape = (\[.*?\])", compiled.ttgir))
            assert layouts == {("[1, 4]", "[16, 8]")} and "mma.sync" in compiled.asm, layouts


def test_the_staging_of_queries_compiles() -> None:
    from draftwood.kernels.attention import triton

    for target in ("gfx1100", "sm_90"):
        arguments = {"p_q": torch.float32, "p_out": torch.float16, "p_factor": torch.float32, "scale": 0.09, "D": 256}
        compile_kernel(triton._stage, target, arguments, num_warps=1).check()
