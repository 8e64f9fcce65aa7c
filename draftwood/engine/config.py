"""How an engine is loaded, and how a method's name becomes a tree shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from draftwood.cache.registry import kv_pair
from draftwood.decode.tree import ROOT_ONLY, TreeShape, check_budget
from draftwood.errors import UsageError
from draftwood.kernels.layouts import WEIGHTS
from draftwood.models.draft_spec import CAUSAL, TAP_SHIFTS, check_window
from draftwood.planner.hardware import parse_memory

DTYPES = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
LAYOUTS = ("auto", *WEIGHTS)
TABLES = ("auto", "device", "host")

AUTO_CONTEXT = -1
"""A `max_context` that the planner is to choose; `Engine.load` also takes "auto" for it."""

MAX_THREADS = 1024
DEFAULT_TREE_BUDGET = 22
DEFAULT_CHAIN_BUDGET = 15


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """A UsageError lists the known values."""
    if value not in known:
        raise UsageError(f"{name} is {str(value)[:40]!r}; it must be one of {', '.join(known)}.")


@dataclass(frozen=True)
class EngineConfig:
    """Everything `Engine.load` takes, checked before a file is opened.

    target: a GGUF file, a name of the registry ("demo"), "hf:OWNER/REPO/FILE", or a name of `models.known` for made-up
    weights ("synthetic:qwen3.6-27b"). draft: None, "lookup", a draft file or directory, a name of the registry's drafts
    ("demo", made for that target), "hf:OWNER/REPO/FILE" or "synthetic:qwen3.6-27b-dflash:q4_k_m".
    kv: KV type of the target's cache, "K/V" for two; "auto" is f32 on a CPU and f16 on a GPU. draft_kv: the same for
    the draft's own cache, where rounding can cost guesses but no token; "auto" is f32 on a CPU and q8_0 on a GPU.
    On a GPU where these do not fit, "auto" is the planner's choice, as is kv with AUTO_CONTEXT.
    max_context: tokens of prompt and answer together, or AUTO_CONTEXT, as many as fit.
    weights: on a GPU "fast", or "compact" with the same values in fewer bytes. token_table: "device", or "host" for
    memory of the host that a GPU reads it from. Both are "auto" where the plan is to decide: fast, and on the device,
    where that fits. vram: memory of the card that may be used, as in "24GiB"; None: what is free of it.
    device: "auto", "cpu" or "cuda" (ROCm devices are "cuda" to torch). dtype: "auto", "float32" (oracle form) or
    "bfloat16". draft_causal: in-block causality, "file" obeys the draft (DESIGN section 8). draft_block: rows of a
    draft block. tap_shift: what to subtract from the draft's target layer numbers. draft_window: how far back the
    draft's layers but the last see, 0 for no window, None for the file's. threads: CPU threads of this process, None
    for torch's own choice (all cores). assume_acceptance: for benchmarks with made-up weights, tokens that a drafted
    round decides on average, whatever the target says to the guesses.
    """

    target: str
    draft: str | None = None
    kv: str = "auto"
    draft_kv: str = "auto"
    max_context: int = 4096
    device: str = "auto"
    dtype: str = "auto"
    draft_causal: str = "file"
    draft_block: int | None = None
    tap_shift: str = "auto"
    draft_window: int | None = None
    threads: int | None = None
    assume_acceptance: float | None = None
    weights: str = "auto"
    token_table: str = "auto"
    vram: str | None = None

    def __post_init__(self) -> None:
        if (
            isinstance(self.max_context, bool)
            or not isinstance(self.max_context, int)
            or not (2 <= self.max_context <= 1 << 24 or self.max_context == AUTO_CONTEXT)
        ):
            raise UsageError(
                f"max_context is {self.max_context!r}; it must be a whole number of tokens from 2 to {1 << 24}."
            )
        if self.threads is not None and (not isinstance(self.threads, int) or not 1 <= self.threads <= MAX_THREADS):
            raise UsageError(f"threads is {self.threads!r}; it must be a whole number from 1 to {MAX_THREADS}.")
        check_assumption(self.assume_acceptance)
        one_of("dtype", self.dtype, DTYPES)
        one_of("device", self.device, DEVICES)
        one_of("weights", self.weights, LAYOUTS)
        one_of("token_table", self.token_table, TABLES)
        if self.vram is not None:
            parse_memory(str(self.vram))
        one_of("draft_causal", self.draft_causal, CAUSAL)
        one_of("tap_shift", self.tap_shift, TAP_SHIFTS)
        check_window(self.draft_window)
        for kv in (self.kv, self.draft_kv):
            if kv != "auto":
                kv_pair(kv)


def check_assumption(mean: float | None) -> None:
    """A UsageError unless it is None or a number from 1 on."""
    if mean is not None and (isinstance(mean, bool) or not isinstance(mean, int | float) or not 1 <= mean < math.inf):
        raise UsageError(
            f"assume_acceptance is {mean!r}; it must be a number of at least 1, the tokens that a round decides."
        )


@dataclass(frozen=True)
class Shaping:
    """The caller's wishes for a round's tree; None leaves a value to the method."""

    budget: int | None = None
    draft_temperature: float = 1.0
    chain_seed: str = "half"


def _plain(shaping: Shaping, block_size: int | None) -> TreeShape:
    return ROOT_ONLY


def _chain(shaping: Shaping, block_size: int | None) -> TreeShape:
    longest = block_size - 1 if block_size else None
    wanted = shaping.budget or longest or DEFAULT_CHAIN_BUDGET
    return TreeShape("chain", budget=min(wanted, longest) if longest else wanted)


def _tree(shaping: Shaping, block_size: int | None) -> TreeShape:
    return TreeShape(
        "best_first",
        budget=shaping.budget or DEFAULT_TREE_BUDGET,
        temperature=shaping.draft_temperature,
        chain_seed=shaping.chain_seed,  # type: ignore[arg-type]
    )


METHODS: dict[str, Callable[[Shaping, int | None], TreeShape]] = {
    "ar": _plain,
    "chain": _chain,
    "tree": _tree,
}
"""A method's name -> the shape of its rounds, given the wishes and the draft's block size (None without a block)."""

METHOD_NAMES = ("auto", *METHODS)


def check_method(method: str, budget: int | None) -> None:
    """Refuse an unknown method, and a budget outside 1..63, in one sentence."""
    one_of("method", method, METHOD_NAMES)
    if budget is not None:
        check_budget(budget)
