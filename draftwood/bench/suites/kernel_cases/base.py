"""What a case is, the sizes it is made for, and how far results may lie from a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draftwood.bench.suites.ops import COPIED, PROMPT
from draftwood.kernels.delta_rule import DeltaShape
from draftwood.models.spec import ModelSpec

CONTEXTS = (512, 16 << 10, 128 << 10)
"""Committed rows that a decode pass attends to."""

DEPTHS = (0, 64 << 10)
"""Positions before a prompt's chunk."""

KV_TYPE = "q8_0"

CANDIDATES = 8
"""Tokens that a draft considers at each depth."""

FLOATS = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Work:
    """Calls of one kernel on distinct inputs. moved: bytes of a call. operations: of a call, where they are the clock.

    reset: what must be put back before the calls are made once more.
    """

    calls: Sequence[Callable[[], object]]
    moved: int
    operations: int = 0
    reset: Callable[[], object] | None = None


@dataclass(frozen=True)
class Kernel:
    """A kernel with its inputs at hand.

    gate: its largest error over what is allowed, so right up to 1. work: its calls for a pass of so many rows.
    """

    gate: Callable[[], float]
    work: Callable[[int], Work]


@dataclass(frozen=True)
class Case:
    """A kernel at one size. when: "pass", where its time depends on the rows, "round" or "prompt".

    counted: what its bytes are of.
    """

    name: str
    shape: str
    counted: str
    make: Callable[[], Kernel]
    when: str = "pass"


@dataclass(frozen=True)
class Setting:
    """A model's sizes, where it runs, and how far sequences go.

    calls: distinct inputs of a captured graph, at most. gated: rows of a gate.
    """

    spec: ModelSpec
    device: str = "cuda"
    contexts: tuple[int, ...] = CONTEXTS
    depths: tuple[int, ...] = DEPTHS
    prompt: int = PROMPT
    calls: int = 64
    gated: int = 9

    @property
    def delta(self) -> DeltaShape | None:
        """Of its gated delta net layers."""
        delta = self.spec.delta
        if delta is None:
            return None
        return DeltaShape(delta.key_heads, delta.value_heads, delta.state_dim, delta.state_dim, self.spec.eps)

    @property
    def kv_width(self) -> int:
        """Width of all KV heads together."""
        return self.spec.kv_heads * self.spec.head_dim

    def sets(self, moved: int) -> int:
        """Distinct inputs of calls that move so many bytes."""
        return max(1, min(self.calls, -(-COPIED // max(moved, 1))))

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        """Normal values that bfloat16 holds, as a cache or a tape may round them to it."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, generator=generator, device=self.device).bfloat16().float()


def projected(setting: Setting, *rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as views of an attention layer's product, [*rows, heads, D]."""
    spec = setting.spec
    product = setting.random(*rows, spec.query_width + 2 * setting.kv_width, seed=seed)
    q, k, v = product.split([spec.query_width, setting.kv_width, setting.kv_width], -1)
    return (
        q.unflatten(-1, (spec.heads, -1, spec.head_dim))[..., 0, :],
        k.unflatten(-1, (-1, spec.head_dim)),
        v.unflatten(-1, (-1, spec.head_dim)),
    )


def beyond(made: Tensor, expected: Tensor, relative: float, absolute: float) -> float:
    """The largest difference over absolute + relative * |expected|."""
    return float(((made.float() - expected.float()).abs() / (absolute + relative * expected.float().abs())).max())


def distance(made: Tensor, expected: Tensor) -> float:
    """Relative, of all values together."""
    return float((made.double() - expected.double()).norm() / expected.double().norm())


def unequal(made: Tensor, expected: Tensor) -> float:
    """0 if all values are equal."""
    return 0.0 if torch.equal(made, expected) else math.inf
