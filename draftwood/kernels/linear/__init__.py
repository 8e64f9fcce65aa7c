"""A weight matrix times a few rows, in the form that fits its block type, the device and the chosen dtype.

`load_linear(raw, request)` picks the first form of `FORMS` that can run: each says why not. On a CPU with
dtype "auto" that is the one that is fastest at ONE row, since plain decoding is what speculation is measured against,
and the same form then serves every row count. A draft need not be exact and may get another form.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from draftwood.kernels._select import select
from draftwood.kernels.linear.base import LinearForm, LinearRequest, LinearWeight
from draftwood.kernels.linear.floats import BFLOAT16, FLOAT32
from draftwood.kernels.linear.int4_cpu import INT4_CPU
from draftwood.kernels.linear.int8_cpu import INT8_CPU
from draftwood.kernels.linear.packed import PACKED

FORMS: tuple[LinearForm, ...] = (PACKED, INT8_CPU, INT4_CPU, BFLOAT16, FLOAT32)

__all__ = ["FORMS", "LinearForm", "LinearRequest", "LinearWeight", "join_linear", "load_linear"]


def load_linear(raw: Tensor, request: LinearRequest) -> LinearWeight:
    """Make a matrix from its GGUF bytes: raw uint8 [N, row bytes] on the request's device."""
    return select("linear", FORMS, request).prepare(raw, request)


def join_linear(weights: Sequence[LinearWeight]) -> LinearWeight | None:
    """One weight for several with one input, or None where their form multiplies them one by one."""
    name, *others = {weight.form for weight in weights}
    return None if others else next(form for form in FORMS if form.name == name).join(weights)
