"""What every stored form of a weight matrix offers.

Letters: R rows of a decode pass, T tokens of a prefill pass, N output features, K input features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as functional
from torch import Tensor

from draftwood.batch import GRANULE, MAX_ROWS
from draftwood.formats.ggml import BlockType

if TYPE_CHECKING:
    from draftwood.kernels.operand import Operand, Product


@dataclass(frozen=True)
class LinearRequest:
    """A matrix to be loaded: its GGUF block type, sizes, the device ("cpu", "cuda") and the user's `dtype`.

    exact: whether the matrix must be as the file has it and a row's bits must not depend on the other rows (DESIGN
    law 1); a draft, whose mistakes cost time only, asks for neither. layout: of `kernels.layouts.WEIGHTS`, for the
    forms of a GPU that have several.
    """

    block_type: BlockType
    out_features: int
    in_features: int
    device: str
    dtype: str
    exact: bool = True
    layout: str = "fast"


class LinearWeight(ABC):
    """One matrix in one form, whose arithmetic is the same for every row count of a decode pass (DESIGN law 1)."""

    form: str

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """x float32 [R, K] -> float32 [R, N]; a row's bits do not depend on R or on the other rows."""

    def multiply(self, x: Operand) -> Product:
        """`decode` of an operand that `kernels.operand` made, to a product that it takes."""
        if not isinstance(x, Tensor):
            raise TypeError(f"the form {self.form} takes float32 rows")
        return self.decode(x)

    @abstractmethod
    def prefill(self, x: Tensor) -> Tensor:
        """x float32 [T, K], T a multiple of GRANULE -> float32 [T, N]; granule by granule."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held in memory."""


@dataclass(frozen=True)
class LinearForm:
    """A way to store a matrix: its name, what it cannot do (a reason, or None) and how it is made from GGUF bytes.

    join: makes one weight of several with one input, their outputs side by side, where that saves time; else None.
    """

    name: str
    can_run: Callable[[LinearRequest], str | None]
    prepare: Callable[[Tensor, LinearRequest], LinearWeight]
    join: Callable[[Sequence[LinearWeight]], LinearWeight | None] = lambda weights: None


def by_granule(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, K] @ weight [N, K] transposed, 64 rows a product, so that a row never depends on the length of the pass."""
    return torch.cat([functional.linear(rows, weight) for rows in x.split(GRANULE)])


def row_multiple(device: str) -> int:
    """Rows of a decode pass are padded to a multiple of this before a library product.

    A library picks its kernel by the shape. On a CPU the float products of MKL and oneDNN give each row the same bits
    once there are four of them (`tests/kernels/test_row_invariance.py` holds it); on a GPU one shape is always used.
    """
    return 4 if device == "cpu" else MAX_ROWS
