"""What one combination of target, draft and KV types takes on a card, part by part, and what a plan consists of.

The bytes are those of the `BufferSpec`s that the packages state, plus what the driver takes. Torch-free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from draftwood.buffers import total
from draftwood.cache.registry import KV_TYPES, kv_label
from draftwood.cache.spec import KVSpec
from draftwood.models import buffers
from draftwood.models.pass_buffers import pass_buffers
from draftwood.models.spec import ModelSpec
from draftwood.planner.hardware import DRIVER, GRAPHS, MARGIN, Card
from draftwood.planner.inventory import Draft, Target

if TYPE_CHECKING:
    from draftwood.planner.cost import CostModel

KVPair = tuple[KVSpec, KVSpec]

DRAFT_BITS = 8.0
TIGHT_DRAFT_BITS = 4.0
"""Bits a value of the draft's own cache has at least, usually and with the lever pulled."""


def smallest_kv(bits: float, head_dim: int) -> KVPair:
    """The type for K and V with the fewest bits a value, of those with at least `bits` that fit the head width."""
    fitting = [kind for kind in KV_TYPES.values() if head_dim % kind.head_multiple == 0 and kind.bits(head_dim) >= bits]
    best = min(fitting, key=lambda kind: kind.bits(head_dim))
    return best, best


@dataclass(frozen=True)
class Setup:
    """One combination. context: tokens. rows: rows of a decode pass, at most. layout: of the weights.

    draft_kv_is_free: whether a lever may change the type of the draft's own cache.
    """

    target: Target
    draft: Draft | None
    kv: KVPair
    draft_kv: KVPair
    context: int
    rows: int
    layout: str = "fast"
    table_on_card: bool = True
    draft_kv_is_free: bool = True


@dataclass(frozen=True)
class Lever:
    """Something that frees memory at a price. name: for programs; mark: in a table; what, price: for people."""

    name: str
    mark: str
    what: str
    price: str
    pull: Callable[[Setup], Setup]


def _tight_draft_kv(setup: Setup) -> Setup:
    if setup.draft is None or not setup.draft_kv_is_free:
        return setup
    return dataclasses.replace(setup, draft_kv=smallest_kv(TIGHT_DRAFT_BITS, setup.draft.spec.head_dim))


LEVERS = (
    Lever(
        "host_table",
        "t",
        "table on host",
        "microseconds a round",
        lambda setup: dataclasses.replace(setup, table_on_card=False),
    ),
    Lever(
        "compact_weights",
        "w",
        "compact weights",
        "products take a fifth longer",
        lambda setup: dataclasses.replace(setup, layout="compact"),
    ),
    Lever("draft_kv", "d", "4-bit draft K/V", "perhaps fewer accepted guesses", _tight_draft_kv),
)
"""In the order in which they are pulled."""


@cache
def _states(spec: ModelSpec) -> dict[str, int]:
    """Bytes of what does not depend on the context: recurrent states and their tapes."""
    return {"state": total(buffers.state_buffers(spec)), "tape": total(buffers.replay_buffers(spec))}


def parts(setup: Setup) -> dict[str, int]:
    """Bytes of a combination by part; the sum is what the driver would count."""
    target, draft = setup.target, setup.draft
    spec, facts = target.spec, None if draft is None else draft.spec
    table = buffers.table_buffer(target.tensors) if setup.table_on_card else None
    taken = {
        "weights": target.layout_bytes[setup.layout],
        "table": 0 if table is None else table.nbytes,
        "kv": total(buffers.cache_buffers(spec, setup.kv, setup.context)),
        **_states(spec),
        "workspace": total(pass_buffers(spec, setup.kv, setup.context, setup.rows, facts)),
        "driver": DRIVER,
        "graphs": GRAPHS,
        "margin": MARGIN,
    }
    if draft is not None:
        taken["draft"] = draft.layout_bytes[setup.layout]
        taken["draft_kv"] = total(buffers.draft_cache_buffers(draft.spec, setup.draft_kv, setup.context))
        taken["features"] = total(buffers.feature_buffers(spec.hidden, len(draft.spec.taps), setup.rows))
    return {name: nbytes for name, nbytes in taken.items() if nbytes}


@dataclass(frozen=True)
class Sizes:
    """A system whose memory can be planned.

    kv_types: those it has. parts: bytes of a combination by part. levers: what it can pull. budget: the tree budget it
    always uses, None where the best one is taken. node_state: bytes of state that it writes for each row of a pass.
    runs: whether draftwood's flags apply.
    """

    name: str
    kv_types: Callable[[], list[KVSpec]]
    parts: Callable[[Setup], dict[str, int]]
    levers: tuple[Lever, ...] = ()
    budget: int | None = None
    node_state: Callable[[Target], int] = lambda target: 0
    runs: bool = False


OURS = Sizes("ours", lambda: list(KV_TYPES.values()), parts, LEVERS, runs=True)


@dataclass(frozen=True)
class Row:
    """One pair of KV types with one draft.

    total: bytes with the levers in `levers` pulled, which are all where it does not fit. budget: candidates a round.
    step, round: seconds of a target pass and of a round. tokens: expected of a round. longest: the longest context
    that fits, in tokens, 0 where none does.
    """

    kv: KVPair
    draft: Draft | None
    draft_kv: KVPair
    fits: bool
    parts: dict[str, int]
    levers: tuple[str, ...]
    budget: int
    step: float
    round: float
    tokens: float
    longest: int
    cost: CostModel = field(repr=False, compare=False)

    @property
    def total(self) -> int:
        """Bytes by the driver's count."""
        return sum(self.parts.values())

    @property
    def speed(self) -> float:
        """Tokens a second, at most."""
        return self.tokens / self.round

    @property
    def kv_name(self) -> str:
        """As in "q8_0/q8_0"."""
        return "/".join(kind.name for kind in self.kv)

    @property
    def kv_short(self) -> str:
        """One name, or both where K and V differ."""
        return kv_label(self.kv)

    @property
    def draft_name(self) -> str:
        """The draft's name, "none" for plain decoding."""
        return "none" if self.draft is None else self.draft.name


@dataclass(frozen=True)
class Plan:
    """The answer: every row, the one to take and why. remarks: what a reader may stumble over."""

    target: Target
    card: Card
    memory: int
    limit: int
    context: int
    sizes: Sizes
    rows: tuple[Row, ...]
    pick: Row
    why: str
    lever_bytes: dict[str, int]
    remarks: tuple[str, ...]
