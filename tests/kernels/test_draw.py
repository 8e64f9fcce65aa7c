"""Random weights: the same bytes everywhere, sound blocks, and the deviation that was asked for."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.kernels import draw as module
from draftwood.kernels.dequant import dequantise
from draftwood.kernels.draw import draw
from draftwood.kernels.draw.blocks import BLOCKS, FLOATS

KEY = 0x0123456789ABCDEF
SHAPE = 512, 2048
STD = 0.02


def drawn(name: str, key: int = KEY, shape: tuple[int, ...] = SHAPE, std: float = STD, device: str = "cpu") -> bytes:
    return draw(key, BLOCK_TYPES[name], shape, std, device).cpu().numpy().tobytes()


def test_every_block_type_can_be_drawn() -> None:
    assert BLOCK_TYPES.keys() == BLOCKS.keys() | FLOATS.keys()


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("std", [1.0, STD, 1 / 17408**0.5])
def test_the_weights_are_healthy(name: str, std: float, device: str) -> None:
    raw = draw(KEY, BLOCK_TYPES[name], SHAPE, std, device)
    assert raw.dtype == torch.uint8 and raw.shape == (512, BLOCK_TYPES[name].row_bytes(2048))
    weights = dequantise(raw, BLOCK_TYPES[name]).double()
    assert weights.isfinite().all()
    assert float(weights.std()) == pytest.approx(std, rel=0.02)
    assert abs(float(weights.mean())) < 0.01 * std
    assert 1.5 * std < float(weights.abs().max()) < 5 * std
    # No row or column is left out or stands out.
    for axis in (0, 1):
        spread = weights.std(axis)
        assert float(spread.min()) > 0.75 * std and float(spread.max()) < 1.3 * std


@pytest.mark.parametrize("name", BLOCKS)
def test_every_value_of_a_byte_occurs(name: str) -> None:
    """Codes and scales are random bytes, but for the halves and the minima that follow from scales."""
    size, recipe = BLOCK_TYPES[name].type_size, BLOCKS[name]
    blocks = np.frombuffer(drawn(name), np.uint8).reshape(-1, size)
    width = 2 if recipe.offset is None else 4
    tied = {"Q2_K": range(16), "Q4_K": range(8, 16), "Q5_K": range(8, 16)}.get(name, range(0))
    for column in sorted(set(range(size)) - set(range(recipe.scale_at, recipe.scale_at + width)) - set(tied)):
        counts = np.bincount(blocks[:, column], minlength=256)
        assert counts.min() > 0 and counts.max() < 4 * len(blocks) / 256, column
    halves = np.ascontiguousarray(blocks[:, recipe.scale_at : recipe.scale_at + width]).view(np.float16)
    assert np.isfinite(halves).all() and (halves != 0).all() and len(np.unique(halves[:, 0])) > 60


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "Q5_K"])
def test_minima_follow_their_scales(name: str) -> None:
    """So that sub-blocks lie around zero, as those of trained weights do."""
    weights = dequantise(draw(KEY, BLOCK_TYPES[name], SHAPE, STD, "cpu"), BLOCK_TYPES[name])
    size = 16 if name == "Q2_K" else 32
    # As if every weight of a sub-block were drawn for itself around zero.
    assert float(weights.reshape(-1, size).mean(1).std()) == pytest.approx(STD / size**0.5, rel=0.1)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_neither_chunks_nor_the_device_change_a_byte(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = 37, 768
    whole = drawn(name, shape=shape)
    monkeypatch.setattr(module, "CHUNK_BLOCKS", {"cpu": 4, "cuda": 8})
    assert drawn(name, shape=shape, device=device) == whole


# A draw is part of what a synthetic model is: files written by one version are those of the next.
DIGESTS = {
    "F32": "417f46ce3624e706",
    "F16": "17aed8366166e5d7",
    "BF16": "f4f9adc6ab46c04a",
    "Q8_0": "461dc33a6e1cfdc8",
    "Q4_K": "f72af48bbe676fb5",
    "Q5_K": "d5a55699aa12b7e1",
    "Q6_K": "45dac970bcdfb8df",
    "IQ4_XS": "2519034761dd15ce",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_bytes_stay_what_they_are(name: str) -> None:
    assert hashlib.sha256(drawn(name, shape=(8, 1024))).hexdigest()[:16] == DIGESTS[name]


def test_keys_give_different_weights() -> None:
    bits = [np.unpackbits(np.frombuffer(drawn("Q8_0", key), np.uint8)) for key in (KEY, KEY + 1, KEY + (1 << 32))]
    for other in bits[1:]:
        assert np.mean(bits[0] != other) == pytest.approx(0.5, abs=0.05)


def test_the_mean_of_floats(device: str) -> None:
    weights = dequantise(draw(KEY, BLOCK_TYPES["F32"], (40960,), 2.1, device, mean=-8.5), BLOCK_TYPES["F32"])
    assert float(weights.mean()) == pytest.approx(-8.5, abs=0.05)
    assert float(weights.std()) == pytest.approx(2.1, rel=0.02)
    assert float(weights.min()) > -8.5 - 7.5 and float(weights.max()) < -1


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="standard deviation of 1e\\+09"):
        drawn("Q4_K", std=1e9)
    with pytest.raises(ValueError, match="standard deviation of 1e-12"):
        drawn("Q6_K", std=1e-12)
    with pytest.raises(ValueError, match="around 0, not around 1"):
        draw(KEY, BLOCK_TYPES["Q8_0"], (2, 64), 1.0, "cpu", mean=1.0)
    with pytest.raises(ValueError, match="32-bit counter"):
        draw(KEY, BLOCK_TYPES["Q8_0"], (1 << 28, 64), 1.0, "meta")
