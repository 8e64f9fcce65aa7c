"""The options that several subcommands share, so that a flag means the same everywhere. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer

from draftwood.cache.registry import names
from draftwood.errors import UsageError

MAX_BUDGET = 63
AUTO = "auto"
_MOST_DIGITS = 9
DEFAULT_CONTEXT = "4096"


class MethodName(StrEnum):
    """How tokens are decided; every method gives the same ones."""

    auto = "auto"
    ar = "ar"
    chain = "chain"
    tree = "tree"


class ChainSeed(StrEnum):
    """How much of a tree's budget its first chain may take."""

    half = "half"
    full = "full"


class DraftCausal(StrEnum):
    """Which draft layers see their own block causally."""

    file = "file"
    none = "none"
    sliding = "sliding"
    all = "all"


class DeviceName(StrEnum):
    """Where the models run; a ROCm device is "cuda" to torch."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """Arithmetic of the target."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class WeightsName(StrEnum):
    """How weights are kept on a GPU, with the same values."""

    auto = "auto"
    fast = "fast"
    compact = "compact"


class TableName(StrEnum):
    """Where the token table lies."""

    auto = "auto"
    device = "device"
    host = "host"


def within(flag: str, low: int, high: int | None = None) -> Callable[[int | None], int | None]:
    """An option callback that refuses a value outside low..high; a value that is None was not given.

    The option parser has ranges too, but its sentence changes with its version and leaves out the value.
    """

    def check(value: int | None) -> int | None:
        if value is not None and (value < low or (high is not None and value > high)):
            expected = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UsageError(f"{flag} is {value}, but must be {expected}; give another {flag}.")
        return value

    return check


def context(text: str) -> str:
    """The value of --max-ctx, checked: a number of tokens, or "auto"."""
    plain = text.strip().lower()
    if plain != AUTO:
        if not plain.isascii() or not plain.isdigit() or len(plain) > _MOST_DIGITS:
            raise UsageError(f"--max-ctx is {text[:40]!r}, but must be a number of tokens, or auto.")
        within("--max-ctx", 2)(int(plain))
    return plain


def window(text: str) -> int:
    """The value of --draft-swa: a number of tokens, or "off" and 0 for no window."""
    if text.strip().lower() == "off":
        return 0
    if not text.strip().isdecimal():
        raise UsageError(f"--draft-swa is {text[:40]!r}, but must be a number of tokens, or off for no window.")
    return int(text)


DRAFTING = "How guesses are made (none of it changes the answer)"
MACHINE = "Memory and device"
_MODEL_HELP = (
    "The model: a GGUF file, hf:OWNER/REPO/FILE, 'demo', a small one that is fetched, or synthetic:NAME, random "
    "weights in the shapes of one (see synth)."
)
_DRAFT_HELP = (
    "What makes the guesses: a draft model made for the target (a GGUF file or a folder of safetensors; 'demo' is the "
    "one that comes with draftwood for the model of that name), or 'lookup', which needs no model."
)
_KV_HELP = f"{', '.join(names())}, each but bf16 smaller and coarser than the one before"

TargetArgument = Annotated[str, typer.Argument(metavar="TARGET", help=_MODEL_HELP)]
TargetOption = Annotated[str, typer.Option("--target", metavar="TARGET", help=_MODEL_HELP)]
DraftOption = Annotated[
    str | None, typer.Option("--draft", metavar="DRAFT", help=_DRAFT_HELP, rich_help_panel=DRAFTING)
]
DefaultDraftOption = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="DRAFT",
        help=f"{_DRAFT_HELP} If left out: 'demo' for the target 'demo', 'lookup' for others.",
        rich_help_panel=DRAFTING,
    ),
]
ContextOption = Annotated[
    str,
    typer.Option(
        "--max-ctx",
        callback=context,
        metavar="N",
        help="Tokens of prompt and answer together, at most; auto takes as many as the memory allows.",
        rich_help_panel=MACHINE,
    ),
]
KeyTypeOption = Annotated[
    str | None,
    typer.Option(
        "--cache-type-k",
        "-ctk",
        metavar="T",
        help=f"How the context's keys are kept: {_KV_HELP}; as the values if left out.",
        rich_help_panel=MACHINE,
    ),
]
ValueTypeOption = Annotated[
    str | None,
    typer.Option(
        "--cache-type-v",
        "-ctv",
        metavar="T",
        help="How the context's values are kept; as the keys if left out.",
        rich_help_panel=MACHINE,
    ),
]
DraftKeyTypeOption = Annotated[
    str | None,
    typer.Option(
        "--draft-type-k",
        "-ctkd",
        metavar="T",
        help="How the draft model's own keys are kept; as its values if left out; without both q8_0, or 4 bits "
        "where that is what fits, on a CPU f32.",
        rich_help_panel=MACHINE,
    ),
]
DraftValueTypeOption = Annotated[
    str | None,
    typer.Option(
        "--draft-type-v",
        "-ctvd",
        metavar="T",
        help="How the draft model's own values are kept; as its keys if left out.",
        rich_help_panel=MACHINE,
    ),
]
DraftWindowOption = Annotated[
    int | None,
    typer.Option(
        "--draft-swa",
        parser=window,
        metavar="N",
        help="How many tokens back all of a draft's layers but the last see, or off; what its file says if left out.",
        rich_help_panel=DRAFTING,
    ),
]
WeightsOption = Annotated[
    WeightsName | None,
    typer.Option(
        "--weights",
        help="How a GPU keeps weights, with the same values: fast, or compact in fewer bytes; auto, as if "
        "left out, is fast where that fits.",
        rich_help_panel=MACHINE,
    ),
]
TableOption = Annotated[
    TableName | None,
    typer.Option(
        "--token-table",
        help="Where the token table lies: on the device, or on the host, which a GPU reads it from; auto, as if left "
        "out, is the device where it fits.",
        rich_help_panel=MACHINE,
    ),
]
VramOption = Annotated[
    str | None,
    typer.Option(
        "--vram",
        metavar="SIZE",
        help="The card's memory that may be used, as in 24GiB; what is free of it if left out.",
        rich_help_panel=MACHINE,
    ),
]
DeviceOption = Annotated[
    DeviceName, typer.Option("--device", help="Where the models run; cuda means ROCm too.", rich_help_panel=MACHINE)
]
DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", help="Arithmetic of the target; auto is the fastest here.", rich_help_panel=MACHINE),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        callback=within("--threads", 1, 1024),
        metavar="N",
        help="CPU threads, all cores if left out; take fewer while other programs are busy.",
        rich_help_panel=MACHINE,
    ),
]
MethodOption = Annotated[
    MethodName,
    typer.Option(
        "--method",
        help="ar: one token at a time, no guesses. chain: guesses in one line. tree: guesses that branch. "
        "auto: the fastest of these. All give the same answer.",
        rich_help_panel=DRAFTING,
    ),
]
BudgetOption = Annotated[
    int | None,
    typer.Option(
        "--budget",
        callback=within("--budget", 1, MAX_BUDGET),
        metavar="B",
        help="Guesses the model may check at once, 1..63; the method's own number if left out.",
        rich_help_panel=DRAFTING,
    ),
]
AssumeOption = Annotated[
    float | None,
    typer.Option(
        "--assume-acceptance",
        metavar="AL",
        help="For made-up weights on a GPU: tokens that a round with guesses decides on average (evenly spread), "
        "whatever the model says to them. Everything still runs and is timed.",
        rich_help_panel=DRAFTING,
    ),
]
TemperatureOption = Annotated[
    float, typer.Option("--temp", metavar="T", help="0 always takes the likeliest token, more is more varied.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="S", help="Above --temp 0: the same seed gives the same answer.")
]
