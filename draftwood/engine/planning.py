"""What fits: context, KV types and where weights lie, chosen for the memory that there is.

On a GPU whose kernels serve the arithmetic this is planned from the headers, before anything is allocated (`prepare`).
Elsewhere, with `max_context="auto"`, once the weights are in place (`settle`): there the driver's count of what is free
is taken and only the rest is planned, for forms that decode a layer's K and V to float32 and make a new recurrent state
beside the old one at a commit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from draftwood.batch import MAX_ROWS
from draftwood.buffers import DTYPE_BYTES, total
from draftwood.cache.registry import KV_TYPES, check_width, kv_pair
from draftwood.cache.spec import KVSpec
from draftwood.cache.states import attention_kernels_serve
from draftwood.decode.drafters.registry import named_drafter
from draftwood.engine.config import AUTO_CONTEXT, EngineConfig
from draftwood.engine.loader import AUTO_KV, machine_memory, pick_draft_kv, pick_kv
from draftwood.engine.memory import SMALL, MemoryPlan, Stock, take_stock
from draftwood.engine.sources import open_draft
from draftwood.errors import UsageError
from draftwood.formats.header import ModelSource
from draftwood.kernels._select import without_triton
from draftwood.models.buffers import feature_buffers, rounded
from draftwood.models.pass_buffers import round_buffers
from draftwood.planner import hardware, inventory, plan
from draftwood.planner.plan import LEVERS, TIGHT_DRAFT_BITS, Lever, Row, Setup, Sizes, smallest_kv
from draftwood.planner.search import Question, fitting, roomiest, weigh

_IN_PLACE = ("weights", "table", "driver", "graphs")


def prepare(config: EngineConfig, source: ModelSource, device: str) -> tuple[EngineConfig, MemoryPlan | None]:
    """The config with all that its "auto" leaves open chosen before loading, and the plan; source: the target's.

    What the config names is kept. A DeviceError where it does not fit, with the longest context that does. Without a
    plan (on a CPU, and in the forms that are for checking) context and KV types stay open for `settle`, and a
    UsageError refuses what only a planned engine can do.
    """
    if device == "cpu" or config.dtype != "auto" or without_triton(device) is not None:
        _check_unplanned(config, device)
        table = "device" if config.token_table == "auto" else config.token_table
        return dataclasses.replace(config, weights="fast", token_table=table), None
    target = inventory.target_of(source, source.path.name)
    stock = take_stock()
    question = question_of(config, target, *room(config, stock))
    row = _chosen(config, question)
    context = config.max_context
    if context == AUTO_CONTEXT:
        context = min(row.longest, target.spec.context_length)
        (row,) = weigh(dataclasses.replace(question, context=context, kv=row.kv))
    settled = dataclasses.replace(
        config,
        max_context=context,
        kv=row.kv_name,
        draft_kv="/".join(kind.name for kind in row.draft_kv) if row.draft is not None else config.draft_kv,
        weights="compact" if "compact_weights" in row.levers else question.layout,
        token_table="host" if "host_table" in row.levers or not question.table_on_card else "device",
    )
    return settled, _memory_plan(row, context, question, settled, stock)


def _check_unplanned(config: EngineConfig, device: str) -> None:
    where = "on a CPU" if device == "cpu" else f"with dtype {config.dtype}"
    for option, asked in (("weights='compact'", config.weights == "compact"), ("vram", config.vram is not None)):
        if asked:
            raise UsageError(f"{option} was asked for, but {where} nothing is packed or planned; leave it out.")


def room(config: EngineConfig, stock: Stock | None) -> tuple[int, int]:
    """Bytes of the card that the config is planned for, and of them those that may be used.

    stock: the card; None for one that is only thought of, as large as the machine's memory if the config names no size.
    """
    named = None if config.vram is None else hardware.parse_memory(config.vram)
    if stock is None:
        memory = named or machine_memory()
        return memory, hardware.usable(memory)
    if named is None:
        return stock.memory, stock.free
    return named, min(hardware.usable(named), stock.free)


def question_of(config: EngineConfig, target: inventory.Target, memory: int, limit: int) -> Question:
    """What is asked of the planner for a config; `context` is the longest wanted."""
    draft = _draft(config, target)
    named = None if config.kv == "auto" else kv_pair(config.kv)
    if named is not None:
        check_width(named, target.spec.head_dim)

    def served() -> list[KVSpec]:
        """Those with kernels, and all where heads are so wide or narrow that none has any."""
        kinds, width = list(KV_TYPES.values()), target.spec.head_dim
        return [kind for kind in kinds if attention_kernels_serve((kind, kind), width, "cuda")] or kinds

    return Question(
        target,
        (draft,),
        hardware.cards()[hardware.DEFAULT_CARD],
        memory,
        limit,
        target.spec.context_length if config.max_context == AUTO_CONTEXT else config.max_context,
        Sizes("engine", served, planned_parts, tuple(_levers(config, draft))),
        kv=named,
        draft_kv=None if config.draft_kv == "auto" else kv_pair(config.draft_kv),
        layout="fast" if config.weights == "auto" else config.weights,
        table_on_card=config.token_table != "host",
        rows=MAX_ROWS if config.draft is not None else None,
    )


def _levers(config: EngineConfig, draft: inventory.Draft | None) -> Iterator[Lever]:
    """Those whose matter the config leaves open."""
    tight = None if draft is None else smallest_kv(TIGHT_DRAFT_BITS, draft.spec.head_dim)
    open_ = {
        "host_table": config.token_table == "auto",
        "compact_weights": config.weights == "auto",
        "draft_kv": draft is not None
        and config.draft_kv == "auto"
        and tight is not None
        and attention_kernels_serve(tight, draft.spec.head_dim, "cuda"),
    }
    return (lever for lever in LEVERS if open_[lever.name])


def _chosen(config: EngineConfig, question: Question) -> Row:
    """The row to load: with a named context and no named KV type the usual one where it fits as things are."""
    if config.max_context == AUTO_CONTEXT:
        return roomiest(question)
    if config.kv == "auto":
        as_things_are = dataclasses.replace(question.sizes, levers=())
        (usual,) = weigh(dataclasses.replace(question, kv=kv_pair(AUTO_KV["cuda"]), sizes=as_things_are))
        if usual.fits:
            return usual
    return fitting(question)


def planned_parts(setup: Setup) -> dict[str, int]:
    """`plan.parts`, and what attention takes beside them where a KV type has no kernels."""
    taken, spec = plan.parts(setup), setup.target.spec
    if not attention_kernels_serve(setup.kv, spec.head_dim, "cuda"):
        taken["decoded"] = _decoded(setup)
    return taken


def _decoded(setup: Setup) -> int:
    """A layer's K and V in float32."""
    spec = setup.target.spec
    return 2 * DTYPE_BYTES["float32"] * spec.kv_heads * spec.head_dim * rounded(setup.context)


def _memory_plan(row: Row, context: int, question: Question, config: EngineConfig, stock: Stock) -> MemoryPlan:
    spec, draft = question.target.spec, None if row.draft is None else row.draft.spec
    rows = question.rows or (1 if draft is None else MAX_ROWS)
    features = [] if draft is None else feature_buffers(spec.hidden, len(draft.taps), rows)[:1]
    rounds = total(round_buffers(spec, context, rows, draft)) + total(features)
    weights = [
        *question.target.buffers[config.weights],
        *([] if row.draft is None else row.draft.buffers[config.weights]),
    ]
    small = total(buffer for buffer in weights if buffer.nbytes <= SMALL)
    return MemoryPlan(row.parts, rounds, question.limit, config.vram is not None, stock, small)


def settle(config: EngineConfig, source: ModelSource, device: str) -> EngineConfig:
    """For an engine without a plan, after loading: the config with its context, and on a GPU its KV type, chosen;
    unchanged unless it asks for AUTO_CONTEXT.

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
    return inventory.draft_of(open_draft(config.draft), target, Path(config.draft).name, *options)


def _parts(setup: Setup) -> dict[str, int]:
    """What is still to be allocated, by part; a draft's weights in float32 at most."""
    taken = {name: size for name, size in plan.parts(setup).items() if name not in _IN_PLACE}
    taken["state"] = 2 * taken.get("state", 0)
    taken["decoded"] = _decoded(setup)
    if setup.draft is not None:
        taken["draft"] = DTYPE_BYTES["float32"] * inventory.weights(setup.draft.tensors)
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
