"""`draftwood plan`: which KV type, draft and context fit a card, how fast that would be, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftwood.cli import options
from draftwood.cli.loading import kv_name
from draftwood.cli.terminal import note, output, plain
from draftwood.errors import UsageError

if TYPE_CHECKING:
    from draftwood.planner.hardware import Card
    from draftwood.planner.inventory import Draft, Target
    from draftwood.planner.plan import KVPair

_NONE = "none"


class SizesName(StrEnum):
    """Whose memory is planned."""

    ours = "ours"
    reference = "reference"


def plan(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A GGUF file, or a model that is known without one: qwen3.6-27b."),
    ] = "qwen3.6-27b",
    draft: Annotated[
        str | None,
        typer.Option(
            "--draft",
            metavar="DRAFT",
            help="A draft file; for a known model also q8_0 or q4_k_m (both if left out); none for plain decoding.",
        ),
    ] = None,
    context: Annotated[
        str, typer.Option("--context", metavar="N", help="Tokens of prompt and answer together, as in 131072 or 128K.")
    ] = "32K",
    vram: Annotated[
        str | None,
        typer.Option("--vram", metavar="SIZE", help="The card's memory, as in 24GiB; asked of the driver if left out."),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(
            "--card", metavar="NAME", help="The card, as in 'RTX 4090', or its GB/s and fp16 TFLOP/s, as in 1008/165."
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            callback=options.within("--budget", 1, options.MAX_BUDGET),
            metavar="B",
            help="Guesses the model may check at once, 1..63; the fastest number if left out.",
        ),
    ] = None,
    cache_type_k: options.KeyTypeOption = None,
    cache_type_v: options.ValueTypeOption = None,
    draft_type_k: options.DraftKeyTypeOption = None,
    draft_type_v: options.DraftValueTypeOption = None,
    draft_swa: options.DraftWindowOption = None,
    sizes: Annotated[
        SizesName, typer.Option("--sizes", help="Plan draftwood's memory, or the reference system's.")
    ] = SizesName.ours,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as one line of JSON.")] = False,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Also draw memory against context (needs matplotlib).")
    ] = None,
) -> None:
    """Show what fits a card: KV types, drafts, the longest context, and which to take.

    Needs neither a GPU nor the model's file. Nothing is downloaded.
    """
    from draftwood.planner.hardware import parse_tokens
    from draftwood.planner.report import details, heading, json_line, table
    from draftwood.planner.search import SIZES, Question, answer

    target = _target(model)
    machine = _machine(card, vram)
    question = Question(
        target,
        _drafts(draft, target, draft_swa),
        machine.card,
        machine.memory,
        machine.limit,
        parse_tokens(context),
        SIZES[sizes],
        budget,
        _kv(cache_type_k, cache_type_v),
        _kv(draft_type_k, draft_type_v),
    )
    made = answer(question)
    if png is not None:
        from draftwood.planner.picture import draw

        draw(question, made, png)
    for line in machine.notes:
        note(line)
    if as_json:
        plain([json_line(made)])
        return
    console = output()
    plain(heading(made, console.width))
    console.print(table(made, console), markup=False)
    plain(details(made, console.width))


def _kv(key: str | None, value: str | None) -> KVPair | None:
    """The types of two flags; None leaves the choice to the plan."""
    from draftwood.cache.registry import kv_pair

    name = kv_name(key, value)
    return None if name is None else kv_pair(name)


@dataclass(frozen=True)
class _Machine:
    """The card, its memory, what of it may be used, and what the user should know of how that was found."""

    card: Card
    memory: int
    limit: int
    notes: tuple[str, ...] = ()


def _machine(card: str | None, vram: str | None) -> _Machine:
    """The card that was named, else the one in this machine, else the usual one."""
    from draftwood.planner import hardware

    memory = None if vram is None else hardware.parse_memory(vram)
    if card is not None:
        named = hardware.card_named(card)
        memory = memory or named.memory
        return _Machine(named, memory, hardware.usable(memory))
    found = hardware.find()
    usual = hardware.cards()[hardware.DEFAULT_CARD]
    if found is None:
        memory = memory or usual.memory
        what = f"an {usual.name}'s {'speed is' if vram else 'memory and speed are'} assumed"
        asked = "no card was found (nvidia-smi, rocm-smi and the amdgpu driver were asked)"
        return _Machine(usual, memory, hardware.usable(memory), (f"{asked}, so {what}; --card names another",))
    known = hardware.known_card(found.name)
    notes = [f"{found.source} says: {found.name}, {found.free / 2**30:.2f} of {found.memory / 2**30:.2f} GiB free"]
    if known is None:
        notes.append(f"that card is not known, so an {usual.name}'s speed is assumed; --card GB/s/TFLOPS gives its own")
    limit = hardware.usable(memory) if memory else min(hardware.usable(found.memory), found.free)
    return _Machine(known or usual, memory or found.memory, limit, tuple(notes))


def _target(model: str) -> Target:
    """A model that is known by name, or a file; nothing is fetched."""
    from draftwood.engine import fetch
    from draftwood.models import known
    from draftwood.planner import inventory

    if known.is_synthetic(model):
        return inventory.synthetic_target(model)
    key = known.key_of(model)
    if key is not None:
        return inventory.known_target(key)
    if model in fetch.registry():
        path = fetch.cached(model)
        if path is None:
            raise UsageError(f"{model} is not here yet; fetch it with `draftwood pull {model}`.")
        return inventory.target_of_file(path)
    if not Path(model).exists() and not Path(model).suffix and "/" not in model:
        raise UsageError(
            f"{model[:40]!r} is neither a file nor a model that is known without one; "
            f"those are {', '.join(known.names())}."
        )
    return inventory.target_of_file(Path(model))


def _drafts(draft: str | None, target: Target, window: int | None) -> tuple[Draft | None, ...]:
    """The drafts to weigh: one that was named, else those that are known for the target, else none."""
    from draftwood.models import known
    from draftwood.planner import inventory

    if draft is None:
        found = inventory.known_drafts(target)
    elif draft.strip().lower() == _NONE:
        found = []
    elif known.is_synthetic(draft):
        found = [inventory.synthetic_draft(draft, target)]
    elif Path(draft).exists():
        found = [inventory.draft_of_file(Path(draft), target)]
    else:
        found = [inventory.named_draft(draft, target)]
    if window is None:
        return tuple(found) or (None,)
    if not found:
        raise UsageError("--draft-swa is given, but there is no draft to plan; name one with --draft, or leave it out.")
    return tuple(inventory.windowed(one, window) for one in found)
