"""Attention and its cache."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from draftwood.batch import MAX_ROWS
from draftwood.bench.suites.kernel_cases.base import (
    KV_TYPE,
    Case,
    Kernel,
    Setting,
    Work,
    distance,
    projected,
    unequal,
)
from draftwood.bench.suites.kernel_cases.trees import deepest, tree_of
from draftwood.cache.base import Plane
from draftwood.cache.codecs import kept_rows
from draftwood.cache.registry import kv_spec, load_plane
from draftwood.kernels.attention import attend_granules as attend_reference
from draftwood.kernels.attention import attend_row
from draftwood.kernels.codec import KeptRows
from draftwood.kernels.draft_tree import CAPACITY
from draftwood.kernels.kv_store import reference, row_table


def _planes(setting: Setting, capacity: int, filled: int) -> tuple[tuple[Plane, Plane], tuple[KeptRows, KeptRows]]:
    """K and V with random rows, also where a pass's nodes lie."""
    spec, kind = setting.spec, kv_spec(KV_TYPE)
    planes = []
    for seed in (1, 2):
        plane = load_plane(kind)(spec.kv_heads, spec.head_dim, capacity, setting.device)
        for first in range(0, filled, 1 << 14):
            size = min(1 << 14, filled - first)
            # A common direction, as rows of a model have: a mean of many would else be hardly more than its error.
            plane.write(setting.random(size, spec.kv_heads, spec.head_dim, seed=seed + first) + 0.3, first)
        plane.write(setting.random(MAX_ROWS, spec.kv_heads, spec.head_dim, seed=seed + 100), plane.staging)
        planes.append(plane)
    keys, values = planes
    return (keys, values), (kept_rows(kind, keys), kept_rows(kind, values))


def _row_bytes(planes: tuple[Plane, Plane]) -> int:
    """Of one position in both."""
    return sum(plane.nbytes // plane.rows for plane in planes)


def attend_tree(setting: Setting, context: int) -> Case:
    """A pass over so many committed rows."""
    spec = setting.spec
    scale = spec.head_dim**-0.5

    def make() -> Kernel:
        from draftwood.kernels.attention import triton

        first = _planes(setting, context, context)
        row_bytes = _row_bytes(first[0])
        more = setting.sets(row_bytes * context) - 1
        everything = [first, *(_planes(setting, context, context) for _ in range(more))]
        staging, committed = first[0][0].staging, torch.tensor([context], device=setting.device)

        def attend(q: Tensor, kept: tuple[KeptRows, KeptRows], depth: Tensor, ancestors: Tensor) -> Tensor:
            return triton.attend_tree(q, *kept, committed, depth, ancestors, staging, scale)

        def shape_of(rows: int) -> tuple[Tensor, Tensor]:
            tree = tree_of(rows)
            return tree.depth[:rows].to(setting.device), tree.ancestors[:rows].to(setting.device)

        def queries(*rows: int) -> Tensor:
            return 3 * setting.random(*rows, spec.heads, spec.head_dim, seed=3)

        def gate() -> float:
            q, node = queries(setting.gated), setting.gated - 1
            made = attend(q, first[1], *shape_of(setting.gated))[node]
            path = deepest(setting.gated)
            keys, values = (
                torch.cat([plane.read(0, context), plane.read(staging, staging + setting.gated)[:, path]], 1)
                for plane in first[0]
            )
            return distance(made, attend_row(q[node], keys, values, scale)) / 2e-3

        def work(rows: int) -> Work:
            depth, ancestors = shape_of(rows)
            inputs = zip(queries(len(everything), rows), everything, strict=True)
            moved = row_bytes * (context + rows) + rows * spec.heads * spec.head_dim * 8
            return Work([partial(attend, q, kept, depth, ancestors) for q, (_, kept) in inputs], moved)

        return Kernel(gate, work)

    shape = f"{spec.heads}/{spec.kv_heads} x {spec.head_dim} {KV_TYPE} at {_short(context)}"
    return Case("attention.attend_tree", shape, "kept rows, queries, results", make)


def _short(number: int) -> str:
    return f"{number >> 10}K" if number and number % 1024 == 0 else str(number)


def store_rows(setting: Setting) -> Case:
    """A pass's rows of a layer."""
    spec, kind = setting.spec, kv_spec(KV_TYPE)

    def make() -> Kernel:
        from draftwood.kernels.kv_store import triton

        def gate() -> float:
            _, k, v = projected(setting, setting.gated)
            (planes, kept), (expected, _) = (_planes(setting, 0, 0) for _ in range(2))
            triton.store_rows(k, v, kept[0], kept[1], planes[0].staging)
            errors = []
            for plane, other, rows in zip(planes, expected, (k, v), strict=True):
                other.write(rows, other.staging)
                one, two = (x.read(x.staging, x.staging + setting.gated) for x in (plane, other))
                off = (one - two).abs()
                # A rotated type differs where the rotation's last place decides between two codes.
                errors += [float(off.sum() / two.abs().sum()) / 1e-3, float((off > 1e-5).double().mean()) / 1e-2]
            return max(errors)

        def work(rows: int) -> Work:
            planes, _ = _planes(setting, 0, 0)
            moved = rows * (setting.kv_width * 8 + _row_bytes(planes))
            number = setting.sets(moved)
            _, k, v = projected(setting, number, rows)
            into = [_planes(setting, 0, 0)[1] for _ in range(number)]
            staging = planes[0].staging
            calls = [
                partial(triton.store_rows, k[at], v[at], keys, values, staging)
                for at, (keys, values) in enumerate(into)
            ]
            return Work(calls, moved)

        return Kernel(gate, work)

    return Case("kv_store.store_rows", f"{spec.kv_heads} x {spec.head_dim} {kind.name}", "K and V, kept rows", make)


def commit_rows(setting: Setting) -> Case:
    """A round's accepted rows, in all layers."""
    layers = sum(setting.spec.attention)

    def make() -> Kernel:
        from draftwood.kernels.kv_store import triton

        def planes() -> list[Plane]:
            return [plane for _ in range(layers) for plane in _planes(setting, MAX_ROWS, 0)[0]]

        def buffers(of: list[Plane]) -> list[Tensor]:
            return [buffer for plane in of for buffer in plane.buffers().values()]

        def path_of(rows: int) -> tuple[Tensor, Tensor, Tensor]:
            path = deepest(rows)
            padded = torch.tensor(path + [-1] * (CAPACITY - len(path)))
            padded, count, committed = (
                x.to(setting.device) for x in (padded, torch.tensor(len(path)), torch.tensor([3]))
            )
            return padded, count, committed

        tables = [planes() for _ in range(min(16, setting.calls))]
        staging = tables[0][0].staging

        def gate() -> float:
            own = buffers(tables[0])
            expected = row_table([buffer.clone() for buffer in own])
            reference.commit_rows(expected, *path_of(MAX_ROWS), staging)
            triton.commit_rows(row_table(own), *path_of(MAX_ROWS), staging)
            pairs = zip(own, expected.buffers, strict=True)
            return max(unequal(one.view(torch.uint8), two.view(torch.uint8)) for one, two in pairs)

        def work(rows: int) -> Work:
            where = path_of(rows)
            calls = [partial(triton.commit_rows, row_table(buffers(of)), *where, staging) for of in tables]
            row_bytes = sum(plane.nbytes // plane.rows for plane in tables[0])
            return Work(calls, 2 * len(deepest(rows)) * row_bytes)

        return Kernel(gate, work)

    return Case("kv_store.commit_rows", f"{layers} layers {KV_TYPE}", "a deepest path's rows, in and out", make)


def attend_granules(setting: Setting, depth: int) -> Case:
    """A prompt's chunk behind so many positions."""
    spec, tokens = setting.spec, setting.prompt
    scale = spec.head_dim**-0.5

    def make() -> Kernel:
        from draftwood.kernels.attention import prefill_triton as triton

        first = _planes(setting, depth + tokens, depth + tokens)
        row_bytes = _row_bytes(first[0])
        moved = row_bytes * (depth + tokens) + tokens * spec.heads * spec.head_dim * 8
        more = setting.sets(moved) - 1
        everything = [first, *(_planes(setting, depth + tokens, depth + tokens) for _ in range(more))]

        def queries(*rows: int) -> Tensor:
            return setting.random(*rows, spec.heads, spec.head_dim, seed=3)

        def gate() -> float:
            q = queries(min(128, tokens))
            made = triton.attend_granules(q, first[1][0], first[1][1], depth, scale)
            keys, values = (plane.read(0, depth + len(q)) for plane in first[0])
            expected = attend_reference(q, keys, values, depth, scale)
            error = (made - expected).norm(dim=-1) / expected.norm(dim=-1)
            return max(float(error.max()) / 5e-3, float(error.mean()) / 1e-3)

        def work(rows: int) -> Work:
            inputs = zip(queries(len(everything), tokens), everything, strict=True)
            calls = [partial(triton.attend_granules, q, *kept, depth, scale) for q, (_, kept) in inputs]
            keys = tokens * depth + tokens * (tokens + 1) // 2
            return Work(calls, moved, 4 * spec.heads * spec.head_dim * keys)

        return Kernel(gate, work)

    shape = f"{tokens} at {_short(depth)}, {KV_TYPE}"
    return Case("attention.attend_granules", shape, "kept rows, queries, results", make, "prompt")
