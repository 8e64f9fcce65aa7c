"""Bytes that go through slabs arrive as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from draftwood.formats.source import map_file, on_device
from draftwood.formats.transfer import SLAB, Transfer


@pytest.mark.parametrize("slab", [1, 7, 1000])
@pytest.mark.parametrize("shape", [(1,), (999,), (1000,), (1001,), (5, 400), (3, 1, 1000)])
def test_every_size_around_a_slab(slab: int, shape: tuple[int, ...], device: str) -> None:
    transfer, random = Transfer(device, slab), np.random.default_rng(slab)
    sent = [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(3)]
    found = [transfer.send(each) for each in sent]
    for expected, tensor in zip(sent, found, strict=True):
        assert tensor.device.type == device
        assert np.array_equal(tensor.cpu().numpy(), expected)


def test_a_part_of_a_mapped_file(tmp_path: Path, device: str) -> None:
    content = np.random.default_rng(0).integers(0, 256, 3 * SLAB + 12345, dtype=np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    mapped = np.frombuffer(map_file(tmp_path / "file"), dtype=np.uint8)[77:]
    for tensor in (on_device(mapped, device), Transfer(device).send(mapped)):
        assert np.array_equal(tensor.cpu().numpy(), content[77:])
