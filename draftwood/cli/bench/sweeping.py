"""The options of `bench ctx` and `bench guide`, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftwood.cli import options
from draftwood.cli.bench.lists import distinct
from draftwood.cli.loading import draft_for, kv_name
from draftwood.errors import UsageError

if TYPE_CHECKING:
    from draftwood.bench.suites.ctx import Point
    from draftwood.bench.suites.rounds import Wanted
    from draftwood.planner.inventory import Target
    from draftwood.planner.plan import KVPair

ContextsOption = Annotated[
    str | None,
    typer.Option(
        "--contexts",
        metavar="N,N,...",
        help="Tokens before the answer, as in 128 or 64K; if left out up to 1K on a CPU and 256K on a GPU.",
    ),
]
KVListOption = Annotated[
    str | None, typer.Option("--kv", metavar="T,K/V,...", help="Several KV types, as in q8_0,q4_0,q8_0/tq3_0.")
]
QuantOption = Annotated[
    str | None,
    typer.Option(
        "--draft-quant",
        metavar="Q,Q,...",
        help="For a synthetic target: quantisations of its synthetic draft, as in q8_0,q4_k_m.",
        rich_help_panel=options.DRAFTING,
    ),
]
RoundOption = Annotated[
    str | None,
    typer.Option(
        "--round",
        metavar="R",
        help="Rounds to compare with plain ones: chain:N or tree:N, each with N guesses, or ar for none; the "
        "draft's longest chain if left out.",
        rich_help_panel=options.DRAFTING,
    ),
]
GenOption = Annotated[
    int,
    typer.Option("--n-gen", callback=options.within("--n-gen", 1, 4096), metavar="N", help="Tokens a run decodes."),
]
RepeatsOption = Annotated[
    int,
    typer.Option(
        "--repeats", callback=options.within("--repeats", 1), metavar="N", help="Decoding runs; the median counts."
    ),
]
TextOption = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="A long text to read, instead of one request again and again."),
]
LimitOption = Annotated[
    str | None,
    typer.Option("--limit", metavar="T", help="End by the clock with the rows done so far, as in 90s, 8m or 1h."),
]


def drafts_of(target: str, draft: str | None, quantisations: str | None) -> list[str]:
    """The drafts to measure with, by name."""
    if quantisations is None:
        return [draft_for(target, draft)]
    from draftwood.models import known

    if draft is not None:
        raise UsageError("--draft names one draft and --draft-quant several; give one of the two.")
    if not known.is_synthetic(target):
        raise UsageError(
            f"--draft-quant is for synthetic: targets, and {target[:40]!r} is none; name a draft's file with --draft."
        )
    key = known.header(target).key
    names = [f"{known.SYNTHETIC}{key}{known.DRAFT}:{kind.lower()}" for kind in distinct("--draft-quant", quantisations)]
    return [str(known.header(name).path) for name in names]


def short(draft: str) -> str:
    """What a table calls a draft: a file's name, a synthetic one's quantisation."""
    return draft.rpartition(":")[2] if ":" in draft else Path(draft).name


def pairs_of(listed: str | None, key: str | None, value: str | None) -> list[KVPair]:
    """The KV types that were named, each checked; none if none were."""
    from draftwood.cache.registry import kv_pair

    single = kv_name(key, value)
    if listed is None:
        return [] if single is None else [kv_pair(single)]
    if single is not None:
        raise UsageError("-ctk and -ctv name one pair of KV types and --kv several; give one of the two.")
    return [kv_pair(name) for name in distinct("--kv", listed)]


def parsed(asked: str) -> Wanted:
    """The value of --round."""
    from draftwood.bench.suites.rounds import wanted

    return wanted(asked, "--round")


def ground(
    target: str,
    contexts: str | None,
    pairs: Sequence[KVPair],
    asked: str | None,
    n_gen: int,
    assumed: float | None,
    device: str,
) -> tuple[str, Target, list[Point]]:
    """The device, the target's facts and the lengths to measure at; what cannot be is said before weights are read."""
    from draftwood.bench.suites import ctx as suite
    from draftwood.cache.registry import check_width
    from draftwood.engine.config import check_assumption
    from draftwood.engine.loader import pick_device
    from draftwood.engine.sources import located, open_target
    from draftwood.planner import inventory
    from draftwood.planner.hardware import parse_tokens

    check_assumption(assumed)
    if asked is not None:
        parsed(asked)
    named = None if contexts is None else distinct("--contexts", contexts)
    lengths = None if named is None else [parse_tokens(length, "--contexts") for length in named]
    where, source = pick_device(device), open_target(located(target))
    about = inventory.target_of(source, source.path.name)
    for pair in pairs:
        check_width(pair, about.spec.head_dim)
    ends = about.spec.context_length
    return where, about, suite.points(lengths or suite.usual_contexts(where, ends), n_gen, ends)
