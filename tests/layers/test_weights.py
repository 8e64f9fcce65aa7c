"""From tensor names to layers: fused matrices, per-tensor scales, and files that do not hold what they announce."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from draftwood.errors import FormatError
from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.formats.source import TensorInfo
from draftwood.layers.weights import Weights


class MemorySource:
    """A `TensorSource` of arrays: float32, or float16 for names in `half`."""

    path = Path("memory.gguf")

    def __init__(self, arrays: dict[str, npt.NDArray[np.float32]], half: tuple[str, ...] = ()) -> None:
        self._arrays = {name: a.astype(np.float16) if name in half else a for name, a in arrays.items()}
        self.tensors = {
            name: TensorInfo(name, a.shape, BLOCK_TYPES["F16" if name in half else "F32"], a.nbytes)
            for name, a in self._arrays.items()
        }

    def tensor(self, name: str, device: str) -> torch.Tensor:
        return torch.from_numpy(self._arrays[name].view(np.uint8)).to(device)


def matrix(rows: int, seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, 32)).astype(np.float16).astype(np.float32)


Q, K, V = matrix(64, 0), matrix(32, 1), matrix(32, 2)
X = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
WIDTHS = [("q", 64), ("k", 32), ("v", 32)]


@pytest.mark.parametrize("half", [(), ("v.weight",), ("k.weight",), ("q.weight", "k.weight", "v.weight")])
def test_matrices_of_any_mix_of_types_give_the_same_results(half: tuple[str, ...]) -> None:
    source = MemorySource({"q.weight": Q, "k.weight": K, "v.weight": V}, half)
    weights = Weights(source, "cpu", "float32")
    projection = weights.projection(WIDTHS, 32)
    for found, expected in zip(projection(X), (Q, K, V), strict=True):
        assert torch.allclose(found, X @ torch.from_numpy(expected).T, atol=1e-4)
    for found, expected in zip(projection(torch.cat([X] * 64)[:64], prefill=True), (Q, K, V), strict=True):
        assert found.shape == (64, len(expected))
    assert list(weights.forms) == ["f32"]


@pytest.mark.parametrize("name", ["k.scale", "k.weight.scale"])
def test_a_scale_multiplies_its_own_matrix_only(name: str) -> None:
    arrays = {"q.weight": Q, "k.weight": K, "v.weight": V, name: np.array([0.25], np.float32)}
    q, k, v = Weights(MemorySource(arrays), "cpu", "float32").projection(WIDTHS, 32)(X)
    assert torch.allclose(k, X @ torch.from_numpy(K).T * 0.25, atol=1e-4)
    assert torch.allclose(q, X @ torch.from_numpy(Q).T, atol=1e-4)
    assert torch.allclose(v, X @ torch.from_numpy(V).T, atol=1e-4)


def test_rows_of_a_stored_matrix_are_those_of_the_whole() -> None:
    arrays = {"q.weight": Q, "q.scale": np.array([0.5], np.float32)}
    for half in ((), ("q.weight",)):
        weights = Weights(MemorySource(arrays, half), "cpu", "float32")
        ids = torch.tensor([3, 7, 63, 8])
        (found,) = weights.load([weights.stored("q", 64, 32).rows(ids)])(X)
        assert torch.allclose(found, X @ torch.from_numpy(Q).T[:, ids] * 0.5, atol=1e-5)


def test_embedding_rows() -> None:
    embedding = Weights(MemorySource({"t.weight": Q}), "cpu", "float32").embedding("t.weight", 64, 32)
    assert torch.equal(embedding(torch.tensor([3, 0, 3])), torch.from_numpy(Q)[[3, 0, 3]])


def test_missing_and_misshapen_tensors_are_named() -> None:
    weights = Weights(MemorySource({"q.weight": Q}), "cpu", "float32")
    with pytest.raises(FormatError, match=r"memory\.gguf has no tensor 'k\.weight'"):
        weights.projection(WIDTHS, 32)
    with pytest.raises(FormatError, match=r"\(64, 32\).*\(65, 32\)"):
        weights.linear("q", 65, 32)
