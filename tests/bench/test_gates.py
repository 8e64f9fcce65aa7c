"""What is flagged as degenerate, and where two answers part."""

from __future__ import annotations

import pytest

from draftwood.bench.gates import degenerate, difference, require_identical
from draftwood.errors import DraftwoodError


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ([], False),
        ([7] * 15, False),
        ([7] * 16, True),
        (list(range(100)), False),
        ([7] * 41 + list(range(100, 159)), True),
        ([7] * 40 + list(range(100, 160)), False),
        ([token % 30 for token in range(100)], False),
        ([token % 29 for token in range(100)], True),
        (list(range(256)) + [7] * 4000, False),
        ([7] * 256 + list(range(4000)), True),
    ],
)
def test_degenerate(token_ids: list[int], expected: bool) -> None:
    assert degenerate(token_ids) is expected


def test_difference() -> None:
    assert difference([1, 2, 3], (1, 2, 3)) is None
    assert difference([1, 2, 3], [1, 9, 3]) == "token 1 is 9 instead of 2"
    assert difference([1, 2, 3], [1, 2]) == "2 tokens instead of 3"


def test_require_identical() -> None:
    require_identical([])
    with pytest.raises(DraftwoodError, match="no speed is shown") as caught:
        require_identical(["below_zero, tree: token 1 is 9 instead of 2"] * 3)
    assert "in 3 runs" in str(caught.value) and len(str(caught.value)) < 280
