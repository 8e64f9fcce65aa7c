"""What tests of row kernels share: poisoned outputs, and DESIGN law 1 held bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 22, 23, 31, 32, 33, 40, 41, 47, 48, 63, 64]


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh buffers of `torch.empty` are full of NaN, or of the smallest integer."""
    fresh = torch.empty

    def empty(*shape: Any, **options: Any) -> Tensor:
        made = fresh(*shape, **options)
        return made.fill_(torch.nan if made.is_floating_point() else torch.iinfo(made.dtype).min)

    with mock.patch("torch.empty", empty):
        yield


def assert_rows_are_alone(function: Callable[..., Tensor], *rows: Tensor) -> None:
    """function(*rows) gives each of 64 rows the same bits alone, in any pass, in any order, as a view or a copy."""
    whole = function(*(x.clone() for x in rows))
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0)).to(whole.device)
    assert torch.equal(function(*(x[order] for x in rows)), whole[order]), "another order"
    for count in ROWS:
        for first in {0, 64 - count, (64 - count) // 2}:
            for part in ([x[first : first + count] for x in rows], [x[first : first + count].clone() for x in rows]):
                assert torch.equal(function(*part), whole[first : first + count]), f"{count} rows from {first}"
