"""A GPU's memory as the driver counts it, and an engine's share: planned, set aside, held to, and looked at.

torch's pool grows by what it is asked for and never tells whether a plan had it. So all that is planned is taken as one
block before the model is loaded, and given back to the pool at once: weights, caches and scratch are then cut from that
block. What rounds need comes from a pool of their graphs, made alike. Beyond the plan the pool may not grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from draftwood.planner import hardware
from draftwood.planner.hardware import DRIVER, GIB

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

SMALL = 1 << 20
"""Bytes of a buffer up to which torch's pool keeps it apart from larger ones."""

OUTSIDE = ("driver", "graphs")
"""Parts of a plan that the driver takes, and not torch's pool."""


@dataclass(frozen=True)
class Stock:
    """A card before a model is loaded, in bytes.

    memory: all of it. free: what this process may still take, the driver's context of the process included. before:
    what was free before the process used the card. held: what torch's pool has, for other models.
    """

    memory: int
    free: int
    before: int
    held: int


@cache
def _untouched() -> dict[str, int]:
    """Free bytes by card, asked once, while this process has no context; none where it has one or no tool says."""
    return {} if torch.cuda.is_initialized() else hardware.free_memory()


def take_stock() -> Stock:
    """The current card. What torch's pool holds for nobody is given back first."""
    known = _untouched()
    # A library's workspace may lie in the block of an engine that is gone, and keep it.
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    free, memory = torch.cuda.mem_get_info()
    held = torch.cuda.memory_reserved()
    name = str(getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", ""))
    before = known.get(name.removeprefix("GPU-"))
    if before is None:
        # The context that there is by now was not seen coming, and counts as another program's.
        return Stock(memory, free, free + held, held)
    context = min(DRIVER, max(0, before - free - held))
    return Stock(memory, free + context, before, held)


@dataclass(frozen=True)
class MemoryPlan:
    """What an engine takes of a card.

    parts: bytes by part, as `planner.plan` names them. rounds: of them, what captured rounds allocate. limit: bytes
    that may be used. capped: whether it must keep to its parts (the user named an amount), and not only to the limit.
    small: of the parts, bytes of buffers of SMALL at most.
    """

    parts: Mapping[str, int]
    rounds: int
    limit: int
    capped: bool
    stock: Stock
    small: int = 0

    @property
    def planned_bytes(self) -> int:
        """All parts, by the driver's count."""
        return sum(self.parts.values())

    @property
    def outside_bytes(self) -> int:
        """What the driver takes beside torch's pool."""
        return sum(self.parts.get(name, 0) for name in OUTSIDE)

    @property
    def cap_bytes(self) -> int:
        """What torch's pool may hold, other models of this process included."""
        return self.stock.held + (self.planned_bytes if self.capped else self.limit) - self.outside_bytes

    @property
    def block_bytes(self) -> int:
        """The block that all but the rounds and what is small is cut from: half of the margin is for gaps that are left
        between."""
        elsewhere = self.outside_bytes + self.rounds + self.small
        return self.planned_bytes - elsewhere - self.parts.get("margin", 0) // 2

    @property
    def round_bytes(self) -> int:
        """The block of the rounds, with a quarter of the margin for gaps. The last quarter is for what is small."""
        return self.rounds + self.parts.get("margin", 0) // 4

    def used_bytes(self) -> int:
        """What the card has in use now beyond what it had before this process, by the driver's count. Memory that was
        taken once stays taken, so after some work this is also the most that it took."""
        return self.stock.before - torch.cuda.mem_get_info()[0]

    def set_aside(self) -> None:
        """Cap the pool and take the block; an error of torch's where the memory has gone since."""
        torch.cuda.set_per_process_memory_fraction(min(1.0, self.cap_bytes / self.stock.memory))
        torch.empty(self.block_bytes, dtype=torch.uint8, device="cuda")

    def set_aside_rounds(self, pool: _POOL_HANDLE) -> torch.cuda.CUDAGraph:
        """Take the rounds' memory into a pool of graphs, which keeps it as long as the graph returned is kept."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            # A graph of nothing is warned of.
            torch.empty(self.round_bytes, dtype=torch.uint8, device="cuda")[:1].zero_()
        return graph

    def summary(self) -> str:
        """One line: planned, allowed and used."""
        planned, limit, used = (f"{size / GIB:.2f}" for size in (self.planned_bytes, self.limit, self.used_bytes()))
        return f"memory: {planned} GiB planned of {limit} that may be used, {used} in use"


def lift_cap() -> None:
    """Let torch's pool grow as it likes, for a model that was not planned."""
    torch.cuda.set_per_process_memory_fraction(1.0)
