"""The KV types with ggml's block formats keep ggml's bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from draftwood.cache.blocks import BLOCK
from draftwood.cache.coded import CodedPlane, Fields
from draftwood.cache.registry import kv_spec, load_plane

TYPES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
WIDTH = 128


def plane(kv: str, device: str) -> CodedPlane:
    made = load_plane(kv_spec(kv))(1, WIDTH, 64, device)
    assert isinstance(made, CodedPlane)
    return made


def data() -> Tensor:
    """Rows of several sizes, with blocks of zeros, of one value, of steps, of values of equal magnitude."""
    rows = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(3))
    rows *= torch.logspace(-4, 3, 400).unsqueeze(1)
    rows[0] = 0
    rows[1, :BLOCK] = -0.75
    rows[2] = torch.arange(WIDTH) - 64.0
    rows[3] = torch.tensor([1.0, -1.0]).repeat(WIDTH // 2)
    rows[4] = torch.tensor([-1.0, 1.0, 0.5, 0.0]).repeat(WIDTH // 4)
    rows[5, 1:] = 0
    return rows


def ggml_bytes(fields: Fields) -> Tensor:
    """The fields of every block one after the other, as ggml has them: uint8 [rows, blocks, bytes]."""
    parts = [field.cpu().unflatten(-1, (WIDTH // BLOCK, -1)).contiguous() for field in fields.values()]
    return torch.cat([part.view(torch.uint8) for part in parts], -1)


@pytest.mark.parametrize("kv", TYPES)
def test_encoded_rows_are_ggmls_bytes(kv: str, device: str) -> None:
    rows = data()
    expected = quants.quantize(rows.numpy(), GGMLQuantizationType[kv.upper()])
    found = ggml_bytes(plane(kv, device).encode(rows.to(device)))
    assert np.array_equal(found.flatten(1).numpy(), expected)


@pytest.mark.parametrize("kv", TYPES)
def test_decoded_rows_are_ggmls_values(kv: str, device: str) -> None:
    made = plane(kv, device)
    fields = made.encode(data().to(device))
    expected = quants.dequantize(ggml_bytes(fields).flatten(1).numpy(), GGMLQuantizationType[kv.upper()])
    assert np.array_equal(made.decode(fields).cpu().numpy(), expected)


@pytest.mark.parametrize("kv", TYPES)
def test_what_is_kept_is_the_code_of_the_rotated_row(kv: str, device: str) -> None:
    made, rows = plane(kv, device), data()[6:].to(device)
    made.write(rows[:64].unsqueeze(1), 0)
    for name, field in made.encode(made.enter(rows[:64])).items():
        assert torch.equal(made.buffers()[name][0, :64], field), name
