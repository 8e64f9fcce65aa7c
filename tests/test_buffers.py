"""Buffers before they exist."""

from __future__ import annotations

import pytest
import torch

from draftwood.buffers import DTYPE_BYTES, BufferSpec, largest, total
from draftwood.cache.allocation import zeros
from draftwood.cache.base import Plane
from draftwood.cache.buffers import plane_rows
from draftwood.cache.registry import kv_spec, load_plane


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_bytes_are_those_of_the_tensor(dtype: str) -> None:
    spec = BufferSpec("b", (3, 5), dtype, "pass")
    made = zeros(spec, "cpu")
    assert made.nbytes == spec.nbytes
    assert made.shape == spec.shape and made.dtype == getattr(torch, dtype) and not made.any()


def test_sums_and_the_largest_group() -> None:
    small, big = BufferSpec("s", (2,), "int8", "pass"), BufferSpec("b", (3,), "float32", "pass")
    assert total([small, big]) == 14 and total([]) == 0
    assert largest([small, small], [big]) == [big]


def test_a_planes_rows_are_stated_once() -> None:
    made: Plane = load_plane(kv_spec("f16"))(1, 32, 192, "cpu")
    assert made.rows == plane_rows(192)
    assert plane_rows(64, 100) == plane_rows(64) and plane_rows(4096, 100) == plane_rows(100)
