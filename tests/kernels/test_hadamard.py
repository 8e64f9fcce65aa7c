"""The fixed rotation of head vectors."""

from __future__ import annotations

import pytest
import torch

from draftwood.kernels.hadamard import hadamard, piece_width, rotate, rotation, signs

WIDTHS = (16, 32, 64, 80, 96, 128, 256)


@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_orthogonal_and_undone(width: int, device: str) -> None:
    there, back = rotation(width, device)
    x = torch.randn(5, 3, width, generator=torch.Generator().manual_seed(width)).to(device)
    y = torch.randn(5, 3, width, generator=torch.Generator().manual_seed(1)).to(device)
    turned = rotate(x, there)
    assert turned.shape == x.shape and not torch.allclose(turned, x, atol=0.1)
    torch.testing.assert_close(rotate(turned, back), x, rtol=0, atol=2e-6)
    torch.testing.assert_close((turned * rotate(y, there)).sum(-1), (x * y).sum(-1), rtol=0, atol=2e-5)
    assert torch.equal(rotate(x.flatten(1), there), turned.flatten(1))


@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_signs_and_then_a_hadamard_transform_of_every_piece(width: int) -> None:
    there, _ = rotation(width, "cpu")
    piece, turned = piece_width(width), signs(width).tolist()
    expected = torch.zeros(width, width)
    for i in range(width):
        for j in range(i - i % piece, i - i % piece + piece):
            parity = (i % piece & j % piece).bit_count() % 2
            expected[i, j] = turned[i] * (-1) ** parity / piece**0.5
    torch.testing.assert_close(there, expected, rtol=0, atol=1e-7)


def test_one_large_value_is_spread_over_its_piece() -> None:
    there, _ = rotation(128, "cpu")
    x = torch.zeros(1, 1, 128)
    x[..., 77] = 5.0
    torch.testing.assert_close(rotate(x, there).abs(), torch.full((1, 1, 128), 5 / 128**0.5))


def test_a_constant_vector_does_not_become_one_large_value() -> None:
    there, _ = rotation(128, "cpu")
    ones = torch.ones(1, 1, 128)
    assert float(rotate(ones, there).abs().max()) < 5
    assert float((ones @ hadamard(128)).abs().max()) > 11


def test_the_signs_are_the_same_everywhere() -> None:
    """Another machine or version must not read a cache's rows otherwise; the values are pinned."""
    assert "".join("+-"[int(s < 0)] for s in signs(32).tolist()) == "++-++++--+-++--++---+--++-+--+-+"
    assert torch.equal(signs(256)[:80], signs(80))


@pytest.mark.parametrize(("width", "piece"), [(16, 16), (64, 64), (80, 16), (96, 32), (192, 64), (256, 256)])
def test_pieces(width: int, piece: int) -> None:
    assert piece_width(width) == piece


def test_heads_without_pieces_are_refused() -> None:
    with pytest.raises(ValueError, match="40 values"):
        rotation(40, "cpu")
