"""A GPU's memory while something is measured, and what the planner had said of it."""

from __future__ import annotations

import gc
import subprocess
from dataclasses import dataclass

import torch

from draftwood.decode.drafters.registry import named_drafter
from draftwood.engine.engine import Engine
from draftwood.engine.loader import pick_draft_kv
from draftwood.engine.sources import open_draft
from draftwood.planner import inventory, plan
from draftwood.planner.hardware import MIB, TIMEOUT
from draftwood.planner.plan import KVPair, Setup


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


def measure(engine: Engine, kv: KVPair, capacity: int, rows: int, before: int) -> Memory | None:
    """The peak since `forget`, and the plan for `capacity` tokens over `kv` and passes of `rows` rows; None on a CPU.

    before: bytes that others had in use. The allocator keeps what it has taken, so its own peak stands for what it had
    between two looks at the driver's count.
    """
    if engine.device == "cpu":
        return None
    free, whole = torch.cuda.mem_get_info()
    peak = whole - free - torch.cuda.memory_reserved() + torch.cuda.max_memory_reserved() - before
    source, config = engine.target.source, engine.config
    target = inventory.target_of(source, engine.target.name)
    draft = None
    if config.draft is not None and named_drafter(config.draft) is None:
        options = config.draft_causal, config.tap_shift, config.draft_window
        draft = inventory.draft_of(open_draft(config.draft), target, config.draft, *options)
    setup = Setup(target, draft, kv, pick_draft_kv(config.draft_kv, engine.device), capacity, rows)
    return Memory(peak, sum(plan.parts(setup).values()))


def forget(device: str) -> None:
    """Give back what a measurement that is over has left, and start the peak anew."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
