"""Attention of a decode pass over kept rows: by the definition, and law 1 bit for bit."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from draftwood.batch import MAX_ROWS
from draftwood.cache.registry import kv_spec, load_plane
from draftwood.kernels.attention import attend_row
from draftwood.kernels.attention.chunks import chunk_of, start_of, state_shape
from tests.kernels.compiling import compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
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
        """All nodes, or a pass of some of them, of which each brings along its ancestors' numbers."""
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
    generator = torch.Generator(device).manual_seed(seed)
    draw = random.Random(seed)
    key, slash, value = kinds.partition("/")
    q, *rows = (
        torch.randn(n, h, width, generator=generator, device=device)
        for n, h in ((nodes, heads), (committed + nodes, groups), (committed + nodes, groups))
    )
    parents = [-1] + [node - 1 if node % 3 else draw.randrange(node) for node in range(1, nodes)]
    room = committed + nodes if capacity is None else capacity
    return Case(3 * q, (rows[0], rows[1]), parents, (key, value if slash else key), room, committed)


def check_close(made: Case, tolerance: float = 4e-3) -> None:
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
    assert [start_of(chunk) for chunk in (0, 1, 31, 32, 33, 47, 48, 128)] == [
        0, 128, 3968, 4096, 4352, 7936, 8192, 1 << 18
    ]  # fmt: skip
    assert state_shape(16, 24, 4, 256, (1 << 18) - 64) == (128, 4, 96, 258)


def check_small(device: str) -> None:
    for kinds in ("f32", "f16", "bf16", "q8_0", "f16/q8_0"):
        check_close(case(device, 37, 5, kinds))
    for committed in (0, 1, 31, 32, 33, 127, 128, 129, 160):
        check_close(case(device, committed, 4))
    check_close(case(device, 100, 7, heads=4, groups=4, width=32))
    check_close(case(device, 40, 3, heads=16, groups=1, width=128))
    huge = case(device, 40, 3, "bf16")
    huge.q *= 1e6
    huge.q[1] *= 1e-12
    check_close(huge)


def check_large_rows(device: str) -> None:
    made = case(device, 33, 2, "f32")
    made.planes[1].data[:, 3] = 1e30
    assert made.attend().isfinite().all()


def check_small_rows_alone(device: str) -> None:
    check_alone(case(device, 20, 16), [[15], [3, 2, 1], [*range(8)], [*range(5, 16)]], [0, 7, 14, 15])
    check_alone(case(device, 122, 13, "q8_0"), [[12], [4, 9]], [0, 5, 11, 12])


def test_kernel_interpreted() -> None:
    run_interpreted("tests.kernels.test_tree_attention", "check_small('cpu')")


def test_rows_beyond_halves_interpreted() -> None:
    run_interpreted("tests.kernels.test_tree_attention", "check_large_rows('cpu')")


def test_rows_are_alone_interpreted() -> None:
    run_interpreted("tests.kernels.test_tree_attention", "check_small_rows_alone('cpu')")


CASES = {
    "q8_0 256": ("q8_0", 24, 4, 256),
    "f16 256": ("f16", 24, 4, 256),
    "f32/q8_0 256": ("f32/q8_0", 24, 4, 256),
    "bf16 128": ("bf16", 32, 8, 128),
    "q8_0 64": ("q8_0", 9, 3, 64),
}


@pytest.mark.parametrize(("target", "case"), compile_cases(*CASES))
def test_compiles(target: str, case: str) -> None:
    from draftwood.cache.codecs import load_codec
    from draftwood.kernels.attention import triton

    kinds, heads, groups, width = CASES[case]
    tiling = triton.AMD if target.startswith("gfx") else triton.NVIDIA
    arguments: dict[str, object] = {
        "p_q": torch.float32, "p_mixes": torch.float32, "p_sums": torch.float32, "p_committed": torch.int64,
        "scale": 0.09, "all_rows": 96, "plane_rows": 4224, "H": heads, "G": groups, "KEYS": tiling.keys,
        "PIECE": width if tiling.piece is None else min(tiling.piece, width), "D": width,
    }  # fmt: skip
    dtypes = []
    for axis, kind in zip("KV", (kinds.split("/") * 2)[:2], strict=True):
        spec = kv_spec(kind)
        arguments[f"LOAD_{axis}"] = load_codec(spec).load
        plane = load_plane(spec)(1, width, 1, "cpu")
        fields = [buffer.dtype for buffer in plane.buffers().values()]
        dtypes += fields
        arguments |= {f"p_{axis.lower()}{n}": fields[n] if n < len(fields) else None for n in range(4)}
    stages = min(tiling.stages, 2) if torch.float32 in dtypes else tiling.stages
    options = {"num_warps": tiling.warps, "num_stages": stages}
    made = [compile_kernel(triton._bulk, target, arguments | {"ROWS": rows}, **options) for rows in tiling.rows]
    tail = {"p_depth": torch.int64, "p_ancestors": torch.int32, "staging": 4160, "path_stride": 64}
    made.append(compile_kernel(triton._tail, target, arguments | tail | {"ROWS": triton.TAIL_ROWS}, **options))
    for compiled in made:
        print(target, case, compiled.registers, compiled.spilled, compiled.shared, compiled.matrix_instructions)
        compiled.check(matrix=True)
