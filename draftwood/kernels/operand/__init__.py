"""What a decode pass does between two products, one launch each: from products to the operand of the next one.

On a GPU a product (`Parts`) is still in parts, `Columns` are some of its outputs, and an operand (`Staged`) is rows of
halves in the order that matrices take them; `linear/triton.py` defines the three. On a CPU a product and an operand are
float32 tensors, and the bits are those of the layers' own arithmetic. A GPU also takes a tensor for a product.

R rows, 1 to 64. A row's bits depend on that row alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from torch import Tensor

from draftwood.kernels._select import load_form

if TYPE_CHECKING:
    from draftwood.kernels.linear.triton import Columns, Parts, Staged

    Product: TypeAlias = Tensor | Parts
    Outputs: TypeAlias = Product | Columns
    Operand: TypeAlias = Tensor | Staged

__all__ = ["AddNorm", "Gate", "GatedNorm", "Operands", "SiluGate", "load_operands"]


class AddNorm(Protocol):
    """x += y; then the RMS norm of x."""

    def __call__(self, x: Tensor, y: Outputs | None, weight: Tensor, eps: float) -> Operand:
        """x float32 [R, E], the residual stream, written in place; y [R, E], or None for the norm alone; weight
        float32 [E]. Returns [R, E].

        A GPU reads the weight before earlier work has ended, so the call before must not have made it. ValueError if
        widths or rows differ, or on a GPU if x or the weight does not begin on 16 bytes or E exceeds 8192.
        """


class SiluGate(Protocol):
    """silu(gate) * up."""

    def __call__(self, gate_up: Product) -> Operand:
        """gate_up [R, 2 N], gate first, a whole product. Returns [R, N].

        ValueError on a GPU if N exceeds 20,480, or a half of a product does not begin on a multiple of 16 columns.
        """


class GatedNorm(Protocol):
    """RMS norm of each head, times silu(z)."""

    def __call__(self, mixed: Tensor, z: Outputs, norm: Tensor, eps: float) -> Operand:
        """mixed float32 [R, H, V]; z [R, H V]; norm float32 [V], read as AddNorm's weight. Returns [R, H V].

        ValueError if shapes differ, or on a GPU if V is no power of two from 16 to 1024 or H V exceeds 8192.
        """


class Gate(Protocol):
    """mixed * sigmoid(gate), or mixed as it is."""

    def __call__(self, mixed: Tensor, gate: Outputs | None) -> Operand:
        """mixed float32 [R, H D] or [R, H, D]; gate of as many columns (`Columns.every`, where a head has others
        beside them, or a view [R, H, D]). Returns [R, H D].

        ValueError if shapes differ, or on a GPU if H D exceeds 20,480 or the gates of a product's heads do not begin on
        multiples of 16 columns.
        """


@dataclass(frozen=True)
class Operands:
    """The four functions in the form of a device."""

    add_norm: AddNorm
    silu_gate: SiluGate
    gated_norm: GatedNorm
    gate: Gate


def load_operands(device: str) -> Operands:
    """The functions for a device ("cpu", "cuda")."""
    names = ("add_norm", "silu_gate", "gated_norm", "gate")
    return Operands(*(load_form(__name__, name, device) for name in names))
