"""The memory of an engine that is measured, and what its plan had said of it."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from draftwood.engine.engine import Engine


@dataclass(frozen=True)
class Memory:
    """Bytes by the driver's count. peak: the most so far, without what was in use before. planned: for the whole."""

    peak: int
    planned: int


def measure(engine: Engine) -> Memory | None:
    """What a planned engine has taken so far; None where nothing was planned, as on a CPU."""
    plan = engine.memory
    return None if plan is None else Memory(plan.used_bytes(), plan.planned_bytes)


def forget() -> None:
    """Give back what a measurement that is over has left."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
