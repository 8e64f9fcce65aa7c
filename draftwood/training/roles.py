"""What a token of a training sequence is, and the stretches that tokens of one kind make."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

FED: Final = 0
WRITTEN_USER: Final = 1
SUPERVISED: Final = 2
"""Roles: fed by a script, written by the target as the user, written by the target as the answer."""


def stretches(inside: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and one past the last place of every unbroken stretch of `inside`."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], inside.astype(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
