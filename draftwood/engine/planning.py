"""`max_context="auto"`: the longest context, and on a GPU the KV type, that the memory left after loading allows.

The weights are in place by then, so the driver's count of what is free is taken and only the rest is planned. That
rest is what the torch kernels of today use: they have no graphs and no token table on the host, but they decode a
layer's K and V to float32, and a commit makes a new recurrent state beside the old one.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import torch

from draftwood.buffers import DTYPE_BYTES
from draftwood.cache.registry import KV_TYPES
from draftwood.decode.drafters.registry import named_drafter
from draftwood.engine.config import AUTO_CONTEXT, EngineConfig
from draftwood.engine.loader import machine_memory, pick_draft_kv, pick_kv
from draftwood.engine.sources import open_draft
from draftwood.formats.header import ModelSource
from draftwood.models.buffers import rounded
from draftwood.planner import hardware, inventory, plan
from draftwood.planner.plan import Setup, Sizes
from draftwood.planner.search import Question, roomiest

_IN_PLACE = ("weights", "table", "driver", "graphs")


def settle(config: EngineConfig, source: ModelSource, device: str) -> EngineConfig:
    """The config with its context, and on a GPU its KV type, chosen; unchanged unless it asks for AUTO_CONTEXT.

    source: the target's. A DeviceError says so where not even a short context fits.
    """
    if config.max_context != AUTO_CONTEXT:
        return config
    target = inventory.target_of(source, source.path.name)
    free, memory = _memory(device)
    planner_picks = config.kv == "auto" and device != "cpu"
    row = roomiest(
        Question(
            target,
            (_draft(config, target),),
            hardware.cards()[hardware.DEFAULT_CARD],
            memory,
            hardware.usable(free),
            target.spec.context_length,
            Sizes("torch", lambda: list(KV_TYPES.values()), _parts),
            kv=None if planner_picks else pick_kv(config.kv, device),
            draft_kv=pick_draft_kv(config.draft_kv, device),
        )
    )
    context = min(row.longest, target.spec.context_length)
    return dataclasses.replace(config, max_context=context, kv=row.kv_name if planner_picks else config.kv)


def _draft(config: EngineConfig, target: inventory.Target) -> inventory.Draft | None:
    """The draft's facts; None for drafters without a file."""
    if config.draft is None or named_drafter(config.draft) is not None:
        return None
    options = config.draft_causal, config.tap_shift, config.draft_window
    return inventory.draft_of(open_draft(config.draft), target, config.draft, *options)


def _parts(setup: Setup) -> dict[str, int]:
    """What is still to be allocated, by part; a draft's weights in float32 at most."""
    spec, draft = setup.target.spec, setup.draft
    taken = {name: size for name, size in plan.parts(setup).items() if name not in _IN_PLACE}
    taken["state"] = 2 * taken.get("state", 0)
    taken["decoded"] = 2 * DTYPE_BYTES["float32"] * spec.kv_heads * spec.head_dim * rounded(setup.context)
    if draft is not None:
        taken["draft"] = DTYPE_BYTES["float32"] * inventory.weights(draft.tensors)
    return taken


def _memory(device: str) -> tuple[int, int]:
    """Bytes that are free, and all of them."""
    if device != "cpu":
        free, memory = torch.cuda.mem_get_info()
        return free, memory
    memory = machine_memory()
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return (memory // 2 if found is None else int(found[1]) << 10), memory
