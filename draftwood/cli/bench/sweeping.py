"""What `bench ctx` and `bench guide` share: their options, and the measurement, which two things can end early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftwood.cli import options
from draftwood.cli.bench.lists import distinct
from draftwood.cli.loading import draft_for, draft_located, kv_name
from draftwood.cli.terminal import note, plain, steps
from draftwood.errors import DraftwoodError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from draftwood.bench.clock import Clock
    from draftwood.bench.prompts.long import LongPrompt
    from draftwood.bench.suites.ctx import Point, Series, Trial
    from draftwood.bench.suites.rounds import Wanted
    from draftwood.engine.engine import Engine
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


@dataclass(frozen=True)
class Job:
    """A draft, a pair of KV types and the lengths to measure them at."""

    draft: str
    kv: KVPair
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Outcome:
    """What was measured, with which draft loaded last. ended: why it is not whole, None if it is."""

    engine: Engine
    series: list[Series]
    ended: str | None
    interrupted: bool

    @property
    def facts(self) -> dict[str, Any]:
        """`Engine.describe()`, with every draft that was measured."""
        return self.engine.describe() | {"draft": ", ".join(dict.fromkeys(one.draft for one in self.series))}


def require_sound(done: Outcome) -> None:
    """The gate: what differs is printed, and a DraftwoodError if anything does."""
    from draftwood.bench.gates import require_identical

    differences = [line for one in done.series for row in one.rows for line in row.differences]
    plain(differences)
    require_identical(differences)


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


def prompt_of(engine: Engine, text: Path | None, length: int) -> LongPrompt:
    """The tokens to read."""
    from draftwood.bench.prompts import long

    if engine.tokenizer is None:
        raise UsageError(f"{engine.target.name} has no tokenizer, so it cannot read a text.")
    return long.repeated(engine.tokenizer, length) if text is None else long.of_file(engine.tokenizer, text, length)


def trial_of(engine: Engine, asked: str | None, n_gen: int, repeats: int, assumed: float | None) -> Trial:
    """How the engine's draft decodes; UsageErrors where it cannot."""
    from draftwood.bench.suites.ctx import Trial
    from draftwood.bench.suites.rounds import Wanted, shape_of
    from draftwood.decode.tree import ROOT_ONLY
    from draftwood.engine.config import METHODS, Shaping

    drafter = engine.drafter
    if asked is None:
        longest = METHODS["chain"](Shaping(), drafter.block_size).budget
        one = Wanted(f"chain:{longest}", "chain", longest) if drafter.max_depth else Wanted("ar", "ar", None)
    else:
        one = parsed(asked)
    shape = shape_of(one, drafter, assumed, "--round")
    if shape != ROOT_ONLY and not drafter.max_depth:
        raise UsageError(f"--round is {one.name!r}, but there is no draft; name one with --draft, or take --round ar.")
    return Trial(one.name, shape, n_gen, repeats, None if shape == ROOT_ONLY else assumed)


def measure(
    engine: Engine, jobs: Sequence[Job], prompt: LongPrompt, trial: Trial, clock: Clock, before: int
) -> Outcome:
    """Run the jobs, the first of which has the engine's draft; what has been measured is kept if they end early.

    A job that runs out of memory ends, and the next one begins. A DraftwoodError where the limit or the memory leaves
    nothing to show, a KeyboardInterrupt where Ctrl-C does.
    """
    import torch

    from draftwood.bench import memory
    from draftwood.bench.clock import OutOfTime, duration
    from draftwood.bench.suites.ctx import exchange_draft, require_captured
    from draftwood.cache.registry import kv_label

    if trial.assumed is not None:
        require_captured(engine, [job.kv for job in jobs])
    series: list[Series] = []
    ended, interrupted, loaded = None, False, jobs[0].draft
    without: list[str] = []
    ids = torch.tensor(prompt.ids)
    try:
        for number, job in enumerate(jobs):
            if job.draft != loaded:
                exchange_draft(engine, draft_located(job.draft))
                loaded = job.draft
            try:
                _sweep(engine, job, ids, trial, clock, before, series, () if number else jobs)
            except torch.OutOfMemoryError:
                without.append(f"{kv_label(job.kv)} with {short(job.draft)}")
            memory.forget(engine.device)
    except OutOfTime:
        ended = f"LIMIT of {duration(clock.seconds or 0)} REACHED"
    except KeyboardInterrupt:
        ended, interrupted = "INTERRUPTED", True
    series = [one for one in series if one.rows]
    if not series and interrupted:
        raise KeyboardInterrupt
    if not series and without:
        raise DraftwoodError(
            f"the memory ran out before a first row was measured ({', '.join(without)}); name shorter --contexts or "
            "smaller KV types."
        )
    if not series:
        raise DraftwoodError(
            f"the --limit of {duration(clock.seconds or 0)} passed before a first row was measured; give more time, or "
            "shorter --contexts."
        )
    if ended is None and without:
        ended = f"OUT OF MEMORY with {', '.join(without)}"
    return Outcome(engine, series, ended, interrupted)


def _sweep(
    engine: Engine,
    job: Job,
    ids: Tensor,
    trial: Trial,
    clock: Clock,
    before: int,
    series: list[Series],
    jobs: Sequence[Job],
) -> None:
    """One job, whose series is added; what it allocates is gone afterwards. jobs: all, to tell how long they take."""
    from draftwood.bench.clock import duration
    from draftwood.bench.suites.ctx import Sweep

    sweep = Sweep(engine, short(job.draft), job.kv, ids, job.points, trial, clock, before)
    seconds = sweep.estimate()
    what = sweep.series.kv if trial.name == "ar" else f"{sweep.series.kv}, draft {sweep.series.draft}"
    whole = _whole(jobs, seconds)
    note(f"{what}: at most about {duration(seconds)}{whole}; {duration(clock.elapsed)} so far")
    series.append(sweep.series)
    with steps(2 * len(job.points)) as begin:
        for _ in sweep.run(begin):
            clock.check()


def _whole(jobs: Sequence[Job], seconds: float) -> str:
    """How long all jobs take if each goes like the first one, which took `seconds`, by the tokens that they read."""
    from draftwood.bench.clock import duration

    if len(jobs) < 2:
        return ""
    share = sum(job.points[-1].tokens for job in jobs) / jobs[0].points[-1].tokens
    return f", all {len(jobs)} about {duration(seconds * share)} if they go alike"
