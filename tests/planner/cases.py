"""Questions that several tests ask."""

from __future__ import annotations

from typing import Any

from draftwood.planner import hardware, inventory
from draftwood.planner.plan import Plan, Row
from draftwood.planner.search import SIZES, Question, answer

K = 1024
GIB = hardware.GIB


def question(
    context: int, sizes: str = "ours", card: str = "RTX 3090", memory: int = 24 * GIB, **more: Any
) -> Question:
    """Qwen3.6-27B with both of its known drafts on a 24 GiB card."""
    target = inventory.known_target("qwen3.6-27b")
    drafts = more.pop("drafts", tuple(inventory.known_drafts(target)))
    named = hardware.card_named(card)
    return Question(target, drafts, named, memory, hardware.usable(memory), context, SIZES[sizes], **more)


def planned(context: int, sizes: str = "ours", card: str = "RTX 3090", **more: Any) -> Plan:
    return answer(question(context, sizes, card, **more))


def name(row: Row) -> str:
    """As in "q4_0 + q8_0": the KV type and the draft."""
    return f"{row.kv_short} + {row.draft_name}"
