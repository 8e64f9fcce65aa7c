"""The seam between the decoding loop and whatever proposes tokens (DESIGN section 4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from draftwood.cache.registry import kv_pair
from draftwood.cache.spec import KVSpec
from draftwood.decode.tree import DraftTree, TreeShape
from draftwood.models.base import Model
from draftwood.models.draft_tensors import DraftSource


@dataclass(frozen=True)
class DrafterRequest:
    """What a drafter is made for.

    target: the loaded target, whose token table and head a draft may borrow. source: the draft's facts and weights,
    None for drafters without any. dtype: "auto", "float32" or "bfloat16". kv: KV types of the draft's own cache.
    causal: in-block causality, "file", "none", "sliding" or "all". block: rows of a block, None for the file's.
    tap_shift: "auto", "0" or "1", what to subtract from the file's target layer numbers. window: how far back a draft's
    layers but the last see, 0 for no window, None for the file's. layout: see `LinearRequest`.
    """

    target: Model
    source: DraftSource | None = None
    dtype: str = "auto"
    kv: tuple[KVSpec, KVSpec] = field(default_factory=lambda: kv_pair("f32"))
    max_context: int = 4096
    causal: str = "file"
    block: int | None = None
    tap_shift: str = "auto"
    window: int | None = None
    layout: str = "fast"


@dataclass(frozen=True)
class Guesses:
    """Independent distributions for every depth, on the device: what a tree grows from.

    tokens: int64 [depths, K], the likeliest first. scores: float32 [depths, K], logits, or log-probabilities without
    a normaliser. normaliser: float32 [depths], taken off the scores, or None.
    """

    tokens: Tensor
    scores: Tensor
    normaliser: Tensor | None = None


class Drafter(ABC):
    """Proposes a tree of candidates; the target decides every token, so a drafter can only cost time.

    name: for reports. wants: target layers whose outputs `observe` is given. block_size: rows of a block of a block
    draft, None for other drafters. max_depth: deepest candidate it can propose. synthetic: whether it guesses with
    made-up weights.
    """

    name: str
    synthetic: bool = False
    wants: tuple[int, ...] = ()
    block_size: int | None = None
    max_depth: int = 0

    @abstractmethod
    def start(self, prompt: Tensor) -> None:
        """Begin a new sequence; prompt int64 [T], whose rows `observe` will bring."""

    @abstractmethod
    def observe(self, tokens: Tensor, features: Tensor | None) -> None:
        """Committed rows in order, prompt rows first.

        tokens: int64 [n]. features: float32 [n, len(wants) * E], None when nothing is wanted.
        """

    @abstractmethod
    def propose(self, pending: Tensor, shape: TreeShape) -> DraftTree:
        """At most `shape.budget` candidates after the pending token, none for ROOT_ONLY.

        pending: int64 [], decided but in no cache yet.
        """

    def mark(self) -> Any:
        """What `rewind` needs to come back here after more rows were observed."""
        raise NotImplementedError(f"{self.name} cannot be marked")

    def rewind(self, mark: Any) -> None:
        """Forget the rows observed since a mark."""
        raise NotImplementedError(f"{self.name} cannot be marked")

    @property
    def on_device(self) -> bool:
        """Whether `guess` and `keep` serve it: rounds in which the host reads nothing."""
        return False

    def guess(self, pending: Tensor, shape: TreeShape) -> Guesses:
        """`propose` without the host, up to what a tree grows from. May be captured in a graph."""
        raise NotImplementedError(f"{self.name} proposes on the host")

    def keep(self, features: Tensor | None, path: Tensor, count: Tensor) -> None:  # noqa: B027
        """`observe` of the nodes path[:count] of a pass without the host: features float32 [R, ...], path int64 [n],
        count int64 []. May be captured in a graph."""

    def make_room(self, rows: int) -> None:  # noqa: B027
        """The host's part before a round of up to `rows` rows that it will not see."""

    def kept(self, count: int) -> None:  # noqa: B027
        """The host's part after it: `count` nodes were kept."""

    def fill_random(self, length: int, seed: int) -> None:  # noqa: B027
        """Begin a sequence of `length` tokens that nobody read, with random rows for them: for benchmarks."""

    @property
    def form(self) -> str:
        """What makes its proposals, in a few words for the conditions of a measurement; empty if the name says it."""
        return ""

    def facts(self) -> dict[str, str]:
        """What `doctor` prints about it: short names and their values."""
        return {}

    @property
    def nbytes(self) -> int:
        """Bytes of weights and caches of its own."""
        return 0
