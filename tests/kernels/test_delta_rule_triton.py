"""The gated delta rule's kernels: trees and commits bit for bit like plain decoding, prefill like the recurrence."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draftwood.batch import GRANULE, depth_first
from draftwood.errors import DeviceError
from draftwood.kernels.activation import sigmoid, silu, softplus
from draftwood.kernels.delta_rule import DeltaLayer, DeltaShape, advance, granules, load_device_form, nodes
from draftwood.kernels.norm import rms_norm
from draftwood.kernels.scratch import branch_slots, slot_shape, visit_width
from tests.kernels.compiling import Compiled, compile_cases, compile_kernel
from tests.kernels.interpreting import run_interpreted
from tests.kernels.rows import poisoned

SMALL = DeltaShape(key_heads=1, value_heads=2, key_dim=16, value_dim=16, eps=1e-6)
WIDE = DeltaShape(key_heads=1, value_heads=2, key_dim=16, value_dim=64, eps=1e-6)
TALL = DeltaShape(key_heads=2, value_heads=2, key_dim=64, value_dim=16, eps=1e-6)
LARGE = DeltaShape(key_heads=16, value_heads=48, key_dim=128, value_dim=128, eps=1e-6)
"""The 27B's."""

ROWS = [1, 2, 5, 9, 15, 16, 17, 23, 32, 41, 48, 63, 64]


def draw_parents(rng: random.Random, rows: int) -> list[int]:
    """A chain, a bush, a caterpillar, a random tree, or one with unused slots at its end."""
    kind = rng.randrange(5)
    if kind == 0:
        return list(range(-1, rows - 1))
    if kind == 1:
        return [-1, *(0 for _ in range(rows - 1))]
    if kind == 2:
        return [-1, *((node - 1) // 2 * 2 for node in range(1, rows))]
    used = rows if kind == 3 else rng.randrange(1, rows + 1)
    return [-1] + [rng.randrange(max(0, node - 4), node) for node in range(1, used)] + [-1] * (rows - used)


def path_to(parents: list[int], node: int) -> list[int]:
    path = [node]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


@dataclass
class Rows:
    """What a projection gives for some rows: raw, gates' logits and z, as views into one buffer."""

    raw: Tensor
    a: Tensor
    b: Tensor

    def __getitem__(self, rows: slice | Tensor | list[int]) -> Rows:
        return Rows(self.raw[rows], self.a[rows], self.b[rows])


def draw_rows(count: int, shape: DeltaShape, device: str, seed: int) -> Rows:
    """Values that bfloat16 holds, as Triton's interpreter does not round."""
    generator = torch.Generator().manual_seed(seed)
    joined = torch.randn(count, shape.channels + 2 * shape.value_heads + 16, generator=generator).bfloat16().float()
    joined = joined.to(device)
    return Rows(*joined.split([shape.channels, shape.value_heads, shape.value_heads, 16], 1)[:3])


class Layers:
    """Some layers of one shape with random weights and states, and the round's plan."""

    def __init__(self, shape: DeltaShape, device: str, tape: torch.dtype, count: int = 1, rows: int = 64) -> None:
        from draftwood.kernels.delta_rule import triton

        self.form, self.shape, self.device, self.tape = triton, shape, device, tape
        generator = torch.Generator().manual_seed(7)

        def draw(*size: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*size, generator=generator) * scale).to(device)

        heads = shape.value_heads
        self.layers = [
            DeltaLayer(
                conv=draw(4, shape.channels),
                rate=-draw(heads).abs(),
                bias=draw(heads),
                state=draw(heads, shape.key_dim, shape.value_dim, scale=0.2),
                window=draw(3, shape.channels).bfloat16().float(),
                raw=torch.full((3 + rows, shape.channels), torch.nan, dtype=tape, device=device),
                decay=torch.full((rows, heads), torch.nan, device=device),
                beta=torch.full((rows, heads), torch.nan, device=device),
            )
            for _ in range(count)
        ]
        self.slots = torch.full(slot_shape(rows, heads, shape.key_dim, shape.value_dim), torch.nan, device=device)
        self.table = triton.layer_table(self.layers)

    def copy_states(self) -> list[tuple[Tensor, Tensor]]:
        return [(layer.state.clone(), layer.window.clone()) for layer in self.layers]

    def set_states(self, states: list[tuple[Tensor, Tensor]]) -> None:
        for layer, (state, window) in zip(self.layers, states, strict=True):
            layer.state.copy_(state)
            layer.window.copy_(window)

    def stage(self, inputs: list[Rows], parents: list[int]) -> list[Tensor]:
        """Outputs of all layers for a tree."""
        order = torch.tensor(depth_first(parents), dtype=torch.int32, device=self.device)
        with poisoned():
            plan = self.form.plan_tree(torch.tensor(parents, device=self.device), order)
            return [
                self.form.tree_rule(
                    self.form.stage_nodes(rows.raw, rows.a, rows.b, plan, layer, self.shape),
                    plan,
                    layer.state,
                    self.slots,
                    self.shape,
                )
                for rows, layer in zip(inputs, self.layers, strict=True)
            ]

    def commit(self, path: list[int]) -> None:
        padded = torch.tensor(path + [-1] * (64 - len(path)), device=self.device)
        count = torch.tensor(len(path), device=self.device)
        self.form.commit_nodes(self.table, padded, count, self.shape, self.tape)

    def plain(self, inputs: list[Rows], path: list[int]) -> list[Tensor]:
        """Outputs of the last node of a path, its nodes decoded and committed one by one."""
        for node in path:
            out = self.stage([rows[node : node + 1] for rows in inputs], [-1])
            self.commit([0])
        return [one[0] for one in out]


def same(found: list[tuple[Tensor, Tensor]], expected: list[tuple[Tensor, Tensor]]) -> bool:
    return all(
        torch.equal(x, y) for one, two in zip(found, expected, strict=True) for x, y in zip(one, two, strict=True)
    )


def gates(rows: Rows, layer: DeltaLayer) -> tuple[Tensor, Tensor]:
    """log decay and beta by the reference."""
    return layer.rate * softplus(rows.a + layer.bias), sigmoid(rows.b)


def check_tree(shape: DeltaShape, device: str, parents: list[int], tape: torch.dtype, seed: int) -> None:
    """Outputs and a commit against the reference, and the tape."""
    layers = Layers(shape, device, tape, rows=len(parents))
    layer, rows = layers.layers[0], draw_rows(len(parents), shape, device, seed)
    state, window = layers.copy_states()[0]
    out = layers.stage([rows], parents)[0]
    g, beta = gates(rows, layer)
    order = depth_first(parents)
    expected = nodes(state, window, rows.raw.contiguous(), g.exp(), beta, layer.conv, shape, parents, order)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=2e-5)
    assert torch.equal(layer.raw, torch.cat((window, rows.raw)).to(tape))
    torch.testing.assert_close(layer.decay, g.exp(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.beta, beta, rtol=1e-5, atol=1e-6)
    path = path_to(parents, len(parents) - 1)
    layers.commit(path)
    picked = rows.raw[path], g[path].exp(), beta[path]
    new_state, new_window = advance(state, window, *picked, layer.conv, shape)
    torch.testing.assert_close(layer.state, new_state, rtol=1e-4, atol=2e-5)
    assert torch.equal(layer.window, new_window)


def check_rounds(
    shape: DeltaShape, device: str, tape: torch.dtype, rounds: int, most: int, layers: int = 2, seed: int = 0
) -> None:
    """Random trees, each committed along a random path: outputs and states have the bits of plain decoding."""
    rng = random.Random(seed)
    tree = Layers(shape, device, tape, layers, most)
    for number in range(rounds):
        parents = draw_parents(rng, rng.randrange(1, most + 1))
        inputs = [draw_rows(len(parents), shape, device, 10 * number + place) for place in range(layers)]
        before = tree.copy_states()
        out = tree.stage(inputs, parents)
        assert same(tree.copy_states(), before), "a decode pass changed a state"
        path = path_to(parents, rng.randrange(len(parents)))
        path = path[: rng.randrange(1, len(path) + 1)]
        tree.commit(path)
        after = tree.copy_states()
        tree.set_states(before)
        last = tree.plain(inputs, path)
        assert same(tree.copy_states(), after), f"{parents} {path}"
        assert all(torch.equal(one[path[-1]], two) for one, two in zip(out, last, strict=True)), f"{parents} {path}"


def check_every_node(shape: DeltaShape, device: str, parents: list[int], tape: torch.dtype) -> None:
    layers = Layers(shape, device, tape, rows=len(parents))
    rows, before = draw_rows(len(parents), shape, device, len(parents)), layers.copy_states()
    out = layers.stage([rows], parents)[0]
    for node in range(len(parents)):
        layers.set_states(before)
        assert torch.equal(layers.plain([rows], path_to(parents, node))[0], out[node]), f"node {node}"
    layers.set_states(before)
    layers.stage([rows], parents)
    layers.commit([])
    assert same(layers.copy_states(), before)


def check_gated_norm(device: str, rows: int, heads: int, width: int) -> None:
    from draftwood.kernels.delta_rule import triton

    x = torch.randn(rows, heads, width, device=device)
    z = torch.randn(rows, heads * width + 16, device=device)[:, 16:]
    weight = torch.randn(width, device=device)
    with poisoned():
        out = triton.gated_norm(x, z, weight, 1e-6)
    expected = rms_norm(x, weight, 1e-6).flatten(1) * silu(z)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def prefilled(layers: Layers, rows: Rows, count: int, splits: list[int]) -> Tensor:
    """Outputs of the `count` rows of consecutive passes of these granules."""
    outs, first = [], 0
    for size in splits:
        part = slice(first, first + size * GRANULE)
        live = min(count - first, size * GRANULE)
        one = rows[part]
        with poisoned():
            outs.append(layers.form.prefill(one.raw, one.a, one.b, layers.layers[0], layers.shape, live))
        first += size * GRANULE
    return torch.cat(outs)[:count]


def check_prefill(shape: DeltaShape, device: str, count: int, tape: torch.dtype, most: float, hard: bool) -> None:
    """Against the reference in double precision; hard: keys that hardly differ, rates of one and no decay."""
    layers = Layers(shape, device, tape)
    layer, number = layers.layers[0], -(-count // GRANULE)
    rows = draw_rows(number * GRANULE, shape, device, count)
    if hard:
        rows.raw.mul_(0.03).add_(rows.raw[:1].clone() * 30)
        rows.raw.copy_(rows.raw.bfloat16().float())
        rows.a.sub_(12)
        rows.b.add_(8)
    rows.raw[count:], rows.a[count:], rows.b[count:] = torch.nan, torch.nan, torch.nan
    state, window = layers.copy_states()[0]
    out = prefilled(layers, rows, count, [number])
    real = Rows(*(x.nan_to_num() for x in (rows.raw, rows.a, rows.b)))
    g, beta = gates(real, layer)
    expected, new_state, new_window = granules(
        *(x.double() for x in (state, window, real.raw, g, beta, layer.conv)), shape, count
    )
    assert relative(out, expected[:count]) < most
    assert relative(layer.state, new_state) < most
    assert torch.equal(layer.window, new_window.float())


def check_splits(shape: DeltaShape, device: str, count: int, splits: list[list[int]], tape: torch.dtype) -> None:
    layers = Layers(shape, device, tape)
    number = sum(splits[0])
    rows, before = draw_rows(number * GRANULE, shape, device, 3), layers.copy_states()
    results = []
    for split in splits:
        layers.set_states(before)
        results.append((prefilled(layers, rows, count, split), layers.copy_states()))
    for out, states in results[1:]:
        assert torch.equal(out, results[0][0])
        assert same(states, results[0][1])


def check_plan(device: str) -> None:
    """Slots of a stack: a state is kept while a child is to come, and no more than `branch_slots` are."""
    from draftwood.kernels.delta_rule import triton

    rng = random.Random(3)
    caterpillar = [-1] + [max(0, node - 1 if node % 2 else node - 2) for node in range(1, 63)]
    for parents in [[-1], [-1] * 5, caterpillar, *(draw_parents(rng, rng.randrange(1, 65)) for _ in range(10))]:
        order, rows = depth_first(parents), len(parents)
        made = triton.plan_tree(
            torch.tensor(parents, device=device), torch.tensor(order, dtype=torch.int32, device=device)
        ).tolist()
        held: dict[int, int] = {}
        last = -1
        for node, (found, near, middle, far, start, keep, *_) in zip(order, made, strict=True):
            assert found == node
            at, taps = node, []
            for _ in range(3):
                at = parents[at] if at >= 0 else at - 1
                taps.append(at + 3)
            assert taps == [near, middle, far]
            assert (last if start == -2 else -1 if start == -1 else held[start]) == parents[node]
            assert keep < branch_slots(rows)
            if keep >= 0:
                held[keep] = node
            last = node


def check_refusals(device: str) -> None:
    layers = Layers(SMALL, device, torch.float32, rows=4)
    rows = draw_rows(5, SMALL, device, 0)
    with pytest.raises(ValueError, match="tape is shorter than 5"):
        layers.stage([rows], [-1] * 5)
    with pytest.raises(ValueError, match="16 to 256 wide, not 24"):
        layers.form.require_shape(replace(SMALL, key_dim=24))
    with pytest.raises(ValueError, match="no multiple of 64"):
        layers.form.prefill(rows.raw, rows.a, rows.b, layers.layers[0], SMALL, 5)
    with pytest.raises(ValueError, match="slots are"):
        layers.slots = layers.slots[:0]
        layers.stage([rows[:4]], [-1] * 4)


TREE = [-1, 0, 0, 1, 1, 2, 4, 4, 0, 8, -1, -1]


def check_small(device: str) -> None:
    check_refusals(device)
    check_tree(SMALL, device, TREE, torch.bfloat16, 1)
    check_tree(WIDE, device, TREE[:5], torch.float32, 2)
    check_tree(TALL, device, [-1, 0, 1, 2, 2], torch.bfloat16, 3)
    check_gated_norm(device, 3, 2, 32)


def check_small_prefill(device: str) -> None:
    check_prefill(SMALL, device, 70, torch.bfloat16, 2e-4, hard=False)
    check_prefill(WIDE, device, 64, torch.float32, 2e-4, hard=False)
    check_prefill(TALL, device, 2, torch.bfloat16, 2e-4, hard=False)
    check_prefill(SMALL, device, 64, torch.bfloat16, 1e-3, hard=True)


@pytest.mark.parametrize(
    "call",
    [
        "check_plan('cpu')",
        "check_small('cpu')",
        "check_every_node(TALL, 'cpu', [-1, 0, 0, 1, 1, 4], torch.bfloat16)",
        "check_rounds(SMALL, 'cpu', torch.bfloat16, 4, 5, 1)",
        "check_small_prefill('cpu')",
        "check_splits(SMALL, 'cpu', 100, [[2], [1, 1]], torch.bfloat16)",
    ],
)
def test_interpreted(call: str) -> None:
    run_interpreted("tests.kernels.test_delta_rule_triton", call)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_rounds_interpreted(seed: int) -> None:
    run_interpreted(
        "tests.kernels.test_delta_rule_triton", f"check_rounds(SMALL, 'cpu', torch.bfloat16, 10, 7, 1, {seed})"
    )


def test_there_is_none_for_a_cpu() -> None:
    with pytest.raises(DeviceError, match="it runs on a GPU"):
        load_device_form("cpu")


def test_scratch() -> None:
    assert [branch_slots(rows) for rows in (1, 2, 3, 4, 5, 32, 64)] == [1, 1, 1, 1, 2, 15, 31]
    assert slot_shape(64, 48, 128, 128) == (31, 48, 128, 128)
    assert visit_width(16, 48, 128, 128) == 10240 + 16 + 96


@pytest.mark.gpu
def test_small_on_a_gpu(gpu: str) -> None:
    check_plan(gpu)
    check_small(gpu)
    check_small_prefill(gpu)
    for shape in (SMALL, WIDE, TALL):
        check_every_node(shape, gpu, TREE, torch.float32)
        check_rounds(shape, gpu, torch.bfloat16, 200, 23)


@pytest.mark.gpu
@pytest.mark.parametrize("tape", [torch.bfloat16, torch.float32])
def test_large_trees_on_a_gpu(gpu: str, tape: torch.dtype) -> None:
    rng = random.Random(5)
    for rows in ROWS:
        check_tree(LARGE, gpu, draw_parents(rng, rows), tape, rows)
    for rows in (16, 23, 64):
        check_every_node(LARGE, gpu, draw_parents(rng, rows), tape)
    check_gated_norm(gpu, 64, 48, 128)


@pytest.mark.gpu
def test_rows_are_alone_on_a_gpu(gpu: str) -> None:
    """Nodes in a pass of another size, at another place, and of a tree that goes on."""
    layers, rows = Layers(LARGE, gpu, torch.bfloat16), draw_rows(64, LARGE, gpu, 11)
    tree = draw_parents(random.Random(1), 64)
    whole, grown = layers.stage([rows], [-1] * 64)[0], layers.stage([rows], tree)[0]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).to(gpu)
    assert torch.equal(layers.stage([rows[order]], [-1] * 64)[0], whole[order])
    for count in ROWS:
        assert torch.equal(layers.stage([rows[:count]], tree[:count])[0], grown[:count]), f"{count} rows of a tree"
        for first in (0, 64 - count):
            part = rows[first : first + count]
            copied = Rows(part.raw.clone(), part.a.clone(), part.b.clone())
            for one in (part, copied):
                found = layers.stage([one], [-1] * count)[0]
                assert torch.equal(found, whole[first : first + count]), f"{count} rows from {first}"


@pytest.mark.gpu
def test_large_rounds_on_a_gpu(gpu: str) -> None:
    check_rounds(LARGE, gpu, torch.bfloat16, 300, 64)


@pytest.mark.gpu
def test_a_captured_round_reads_tree_and_path_on_the_device(gpu: str) -> None:
    layers, rng = Layers(LARGE, gpu, torch.bfloat16, rows=16), random.Random(2)
    layer, form, shape = layers.layers[0], layers.form, layers.shape
    rows, parents = draw_rows(16, shape, gpu, 0), torch.full((16,), -1, device=gpu)
    order = torch.arange(16, dtype=torch.int32, device=gpu)
    path, count = torch.zeros(64, dtype=torch.int64, device=gpu), torch.ones((), dtype=torch.int64, device=gpu)

    def run() -> Tensor:
        plan = form.plan_tree(parents, order)
        visits = form.stage_nodes(rows.raw, rows.a, rows.b, plan, layer, shape)
        out = form.tree_rule(visits, plan, layer.state, layers.slots, shape)
        form.commit_nodes(layers.table, path, count, shape, layers.tape)
        return out

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for seed in range(5):
        tree = draw_parents(rng, 16)
        way = path_to(tree, rng.randrange(16))
        drawn, before = draw_rows(16, shape, gpu, seed), layers.copy_states()
        expected = layers.stage([drawn], tree)[0]
        layers.commit(way)
        after = layers.copy_states()
        layers.set_states(before)
        for x, y in ((rows.raw, drawn.raw), (rows.a, drawn.a), (rows.b, drawn.b)):
            x.copy_(y)
        parents.copy_(torch.tensor(tree))
        order.copy_(torch.tensor(depth_first(tree)))
        path[: len(way)] = torch.tensor(way, device=gpu)
        count.fill_(len(way))
        graph.replay()
        assert torch.equal(out, expected)
        assert same(layers.copy_states(), after)


@pytest.mark.gpu
@pytest.mark.parametrize("tape", [torch.bfloat16, torch.float32])
def test_large_prefill_on_a_gpu(gpu: str, tape: torch.dtype) -> None:
    for count in (1, 2, 64, 100, 2048):
        check_prefill(LARGE, gpu, count, tape, 2e-4, hard=False)
    check_prefill(LARGE, gpu, 640, tape, 1e-3, hard=True)
    check_splits(LARGE, gpu, 2000, [[32], [1] * 32, [3, 16, 13]], tape)


SHAPES = {"27B": LARGE, "small": TALL}
SPILLED = {"gfx1100": (400, 200), "gfx1151": (400, 200), "sm_86": (24, 0), "sm_89": (24, 0), "sm_90": (24, 0)}
"""What does not fit, at most, in the two kernels of prefill with products: operands of WMMA take twice their size."""


def tiling_for(target: str) -> Any:
    from draftwood.kernels.delta_rule import triton

    return triton.AMD if target.startswith("gfx") else triton.NVIDIA


def build(kernel: Any, target: str, shape: DeltaShape, floats: str, others: dict[str, Any], **options: int) -> Compiled:
    """A kernel with the shape's sizes, as far as it takes them; floats: its float32 tensors."""
    sizes = {"HK": shape.key_heads, "HV": shape.value_heads, "K": shape.key_dim, "V": shape.value_dim}
    arguments = {f"p_{name}": torch.float32 for name in floats.split()} | others
    arguments |= {name: size for name, size in sizes.items() if name in kernel.arg_names}
    return compile_kernel(kernel, target, arguments, **options)


def strides(shape: DeltaShape) -> dict[str, int]:
    """Of parts of one product."""
    width = shape.channels + 2 * shape.value_heads + shape.value_heads * shape.value_dim
    return {f"{name}_STRIDE": width for name in ("RAW", "A", "B")}


@pytest.mark.parametrize(("target", "case"), compile_cases("27B", "small"))
def test_decode_compiles(target: str, case: str) -> None:
    tl = pytest.importorskip("triton.language")
    from draftwood.kernels.delta_rule import triton

    shape, exact = SHAPES[case], triton.EXACT
    plan = {"p_parents": torch.int64, "p_order": torch.int32, "p_plan": torch.int32, "rows": 16, "BLOCK": 64}
    build(triton._plan, target, shape, "", plan, num_warps=4).check()
    tape = {"p_plan": torch.int32, "p_tape": torch.bfloat16, "eps": 1e-6, "scale": 0.1} | strides(shape)
    floats = "raw a b window conv rate bias decay beta visits"
    build(triton._stage, target, shape, floats, tape, **exact).check()
    walk = {"p_plan": torch.int32, "rows": 16, "LANES": triton.LANES, "COLUMNS": triton.COLUMNS}
    build(triton._tree_rule, target, shape, "visits state slots out", walk, **exact).check()
    norm = {"eps": 1e-6, "Z_STRIDE": shape.channels}
    build(triton._gated_norm, target, shape, "x z weight out", norm, **exact).check()
    path = {"p_table": torch.int64, "p_path": torch.int64, "p_count": torch.int64, "eps": 1e-6, "LANES": triton.LANES}
    columns = {"COLUMNS": tiling_for(target).commit}
    build(triton._commit, target, shape, "", path | columns | {"TAPE": tl.bfloat16}, **exact).check()


@pytest.mark.parametrize(("target", "case"), compile_cases("small", "27B"))
def test_prefill_compiles(target: str, case: str) -> None:
    tl = pytest.importorskip("triton.language")
    from draftwood.kernels.delta_rule import triton

    shape, tiling = SHAPES[case], tiling_for(target)
    steps = strides(shape)
    raw = {"count": 64, "RAW_STRIDE": steps.pop("RAW_STRIDE"), "TAPE": tl.bfloat16}
    heads = raw | {"eps": 1e-6, "scale": 0.1, "ROWS": triton.PREFILL_ROWS}
    build(triton._prefill_heads, target, shape, "raw window conv q k v", heads, num_warps=4).check()
    keys, values = min(tiling.keys, shape.key_dim), min(tiling.columns, shape.value_dim)
    blocks = {"count": 64, "C": GRANULE, "KEYS": keys, "EMULATED": False}
    floats, options = "q k v a b rate bias u w scores total", {"num_warps": tiling.granule_warps, "num_stages": 1}
    with triton.without_wgmma():
        granule = build(
            triton._granule, target, shape, floats, blocks | steps | {"VALUES": min(32, shape.value_dim)}, **options
        )
    granule.check(matrix=True, spilled=SPILLED[target][0])
    floats, options = (
        "raw q k u w scores total state window out",
        {"num_warps": triton.pass_warps(tiling, values), "num_stages": 1},
    )
    with triton.without_wgmma():
        through = build(
            triton._pass, target, shape, floats, blocks | raw | {"granules": 32, "COLUMNS": values}, **options
        )
    assert "wgmma" not in granule.asm + through.asm
    through.check(matrix=True, spilled=SPILLED[target][1])
