"""A GPU's memory while something is measured, and what the planner had said of it."""

from __future__ import annotations

import gc
import subprocess
from dataclasses import dataclass

import torch

from draftwood.decode.drafters.registry import named_drafter
from draftwood.engine.engine import Engine
from draftwood.engine.loader import machine_memory, pick_draft_kv
from draftwood.engine.sources import open_draft
from draftwood.planner import inventory, plan
from draftwood.planner.hardware import MIB, TIMEOUT
from draftwood.planner.inventory import Draft, Target
from draftwood.planner.plan import Setup


@dataclass(frozen=True)
class Memory:
    """Bytes by the driver's count. peak: the most so far, without what was in use before. planned: for the whole."""

    peak: int
    planned: int


def in_use() -> int:
    """Bytes in use on the first GPU, to be asked before this process takes any; 0 where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return 0
    return int(said) * MIB if said.isdigit() else 0


def measure(engine: Engine, capacity: int, rows: int, before: int) -> Memory | None:
    """The peak since `forget`, and the plan for `capacity` tokens and passes of `rows` rows; None on a CPU.

    before: bytes that others had in use. The allocator keeps what it has taken, so its own peak stands for what it had
    between two looks at the driver's count.
    """
    if engine.device == "cpu":
        return None
    free, whole = torch.cuda.mem_get_info()
    peak = whole - free - torch.cuda.memory_reserved() + torch.cuda.max_memory_reserved() - before
    config, target = engine.config, inventory.target_of(engine.target.source, engine.target.name)
    options = config.draft_causal, config.tap_shift, config.draft_window
    draft = None if config.draft is None else draft_facts(config.draft, target, config.draft, *options)
    setup = Setup(target, draft, engine.kv, pick_draft_kv(config.draft_kv, engine.device), capacity, rows)
    return Memory(peak, sum(plan.parts(setup).values()))


def draft_facts(
    draft: str, target: Target, name: str, causal: str = "file", tap_shift: str = "auto", window: int | None = None
) -> Draft | None:
    """What the planner has to know of a draft, as `EngineConfig` names it; None for drafters without a file."""
    if named_drafter(draft) is not None:
        return None
    return inventory.draft_of(open_draft(draft), target, name, causal, tap_shift, window)


def of_device(device: str) -> int:
    """Bytes of a device's whole memory; of the machine's for a CPU."""
    return machine_memory() if device == "cpu" else torch.cuda.get_device_properties(0).total_memory


def forget() -> None:
    """Give back what a measurement that is over has left, and start the peak anew."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
