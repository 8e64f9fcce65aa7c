from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch

from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.formats.gguf import GGUFFile
from draftwood.kernels.dequant import _SLAB_WEIGHTS, dequantise
from draftwood.kernels.dequant.reference import CODES, FLOATS

# Byte positions of the half-precision scales of a block.
HALVES = {
    "F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_XS": [0],
}  # fmt: skip
QUANTISED = [name for name in BLOCK_TYPES if name not in ("F32", "F16", "BF16")]


def random_blocks(name: str, rows: int, blocks: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Rows of random bits; only infinities and NaNs among the scales are replaced."""
    kind = BLOCK_TYPES[name]
    rng = np.random.default_rng([seed, kind.code])
    data = rng.integers(0, 256, (rows, blocks, kind.type_size), dtype=np.uint8)
    for at in HALVES.get(name, []):
        high = data[..., at + 1]
        high[(high & 0x7C) == 0x7C] ^= 0x40
    if name in ("F32", "BF16"):
        high = data[..., -1]
        high[(high & 0x7F) == 0x7F] ^= 0x40
    return data.reshape(rows, -1)


def bits(values: npt.NDArray[np.float32] | torch.Tensor) -> npt.NDArray[np.int32]:
    return np.ascontiguousarray(np.asarray(values)).view(np.int32)


def ulps(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Distance in representable float32 numbers."""
    ordered = [np.where((i := bits(x).astype(np.int64)) < 0, -(i & 0x7FFFFFFF), i) for x in (a, b)]
    distance: npt.NDArray[np.int64] = np.abs(ordered[0] - ordered[1])
    return distance


@pytest.fixture(scope="module")
def vectors(vendored: Path) -> Mapping[str, npt.NDArray[np.generic]]:
    with np.load(vendored / "dequant/dequant.npz") as archive:
        return {key: archive[key] for key in archive.files}


@pytest.mark.parametrize("name", QUANTISED)
def test_against_ggml(vectors: Mapping[str, npt.NDArray[np.generic]], name: str) -> None:
    got = dequantise(torch.from_numpy(vectors[f"{name}_bytes"]), BLOCK_TYPES[name])
    expected = vectors[f"{name}_float"].astype(np.float32)
    assert got.dtype == torch.float32 and got.shape == (48, 512)
    if name in ("Q4_K", "Q5_K"):  # ggml may fuse the multiplication and the subtraction
        assert ulps(got.numpy(), expected).max() <= 1
    else:
        np.testing.assert_array_equal(bits(got), bits(expected))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_against_the_gguf_library(name: str) -> None:
    kind = BLOCK_TYPES[name]
    data = random_blocks(name, rows=37, blocks=768 // kind.block_size)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    got = dequantise(torch.from_numpy(data), kind)
    assert got.shape == (37, 768)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(bits(got), bits(expected))


def test_every_tensor_of_a_model(vendored: Path) -> None:
    ours = GGUFFile.open(vendored / "models/q35-c.Q4_K_M.gguf")
    for tensor in gguf.GGUFReader(vendored / "models/q35-c.Q4_K_M.gguf").tensors:
        info = ours.tensors[tensor.name]
        got = dequantise(torch.from_numpy(ours.raw(tensor.name)), info.block_type)
        assert got.shape == info.shape
        np.testing.assert_array_equal(bits(got), bits(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_slabs_leading_dimensions_and_views(name: str) -> None:
    kind = BLOCK_TYPES[name]
    # More than one slab, the last one partly filled and beginning inside a row.
    row = 3 * 256
    rows = _SLAB_WEIGHTS // row + 5
    data = torch.from_numpy(random_blocks(name, rows, row // kind.block_size, seed=1))
    whole = dequantise(data, kind)
    for part in (slice(0, 3), slice(rows - 4, rows), slice(rows // 2, rows // 2 + 2)):
        np.testing.assert_array_equal(bits(whole[part]), bits(dequantise(data[part], kind)))
    np.testing.assert_array_equal(bits(dequantise(data[:8:2], kind)), bits(whole[:8:2]))
    cube = dequantise(data[:6].view(2, 3, -1), kind)
    assert cube.shape == (2, 3, row)
    np.testing.assert_array_equal(bits(cube.view(6, row)), bits(whole[:6]))
    assert dequantise(data[:0], kind).shape == (0, row)
    assert dequantise(data[0], kind).shape == (row,)


def test_result_shares_no_memory() -> None:
    data = torch.ones(2, dtype=torch.float32).view(torch.uint8)
    result = dequantise(data, BLOCK_TYPES["F32"])
    data.zero_()
    assert result.tolist() == [1, 1]


def test_special_halves_keep_their_meaning() -> None:
    halves = np.array([0x0001, 0x8000, 0x7C00, 0xFC00, 0x03FF], dtype=np.uint16)
    got = dequantise(torch.from_numpy(halves.view(np.uint8)), BLOCK_TYPES["F16"])
    np.testing.assert_array_equal(bits(got), bits(halves.view(np.float16).astype(np.float32)))
    brains = np.array([0x0001, 0x8000, 0x7F80, 0x7FA1], dtype=np.uint16)
    got = dequantise(torch.from_numpy(brains.view(np.uint8)), BLOCK_TYPES["BF16"])
    np.testing.assert_array_equal(bits(got).view(np.uint32), brains.astype(np.uint32) << 16)


def test_wrong_rows_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="Q8_0 rows are uint8 and a multiple of 34"):
        dequantise(torch.zeros(4, 35, dtype=torch.uint8), BLOCK_TYPES["Q8_0"])
    with pytest.raises(ValueError, match=r"not torch\.int8"):
        dequantise(torch.zeros(4, 34, dtype=torch.int8), BLOCK_TYPES["Q8_0"])


def test_every_block_type_has_a_dequantiser() -> None:
    assert CODES.keys() | FLOATS.keys() == BLOCK_TYPES.keys()
