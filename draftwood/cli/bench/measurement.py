"""The measurement of `bench ctx` and `bench guide`: an engine for each job, and what two things can end early."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftwood.cli.bench.sweeping import parsed, short
from draftwood.cli.loading import KVFlags, open_engine
from draftwood.cli.terminal import note, plain, steps
from draftwood.errors import DeviceError, DraftwoodError, UsageError

if TYPE_CHECKING:
    from draftwood.bench.clock import Clock
    from draftwood.bench.prompts.long import LongPrompt
    from draftwood.bench.suites.ctx import Point, Series, Trial
    from draftwood.engine.engine import Engine
    from draftwood.planner.plan import KVPair


@dataclass(frozen=True)
class Job:
    """A draft, a pair of KV types and the lengths to measure them at."""

    draft: str
    kv: KVPair
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Wishes:
    """How to measure, as the flags of the same names say."""

    round: str | None
    n_gen: int
    repeats: int
    text: Path | None
    assume_acceptance: float | None


@dataclass(frozen=True)
class Outcome:
    """What was measured. facts: `Engine.describe()`, with every draft. ended: what is missing and why, None if it is
    whole."""

    facts: Mapping[str, Any]
    synthetic: bool
    prompt: LongPrompt
    trial: Trial
    series: list[Series]
    ended: str | None
    interrupted: bool


def loading(
    target: str,
    draft_kv: KVFlags,
    device: str,
    dtype: str,
    wishes: Wishes,
    threads: int | None,
    weights: str | None,
    token_table: str | None,
    vram: str | None,
) -> Callable[[Job], Engine]:
    """What loads the engine of a job, with room for its longest point and the answer."""

    again = False

    def load(job: Job) -> Engine:
        nonlocal again
        key, value = job.kv
        engine = open_engine(
            target,
            job.draft,
            (key.name, value.name),
            draft_kv,
            job.points[-1].tokens + wishes.n_gen,
            device,
            dtype,
            threads=threads,
            assume_acceptance=wishes.assume_acceptance,
            weights=weights,
            token_table=token_table,
            vram=vram,
            again=again,
        )
        again = True
        return engine

    return load


def write(out: Path, name: str, markdown: str, line: str, series: Sequence[Series], caption: str) -> None:
    """The same as a page, for programs and as a picture, in the folder `out`."""
    from draftwood.bench import ctx_picture

    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(markdown, encoding="utf-8")
    (out / f"{name}.json").write_text(line + "\n", encoding="utf-8")
    ctx_picture.draw(series, caption, out / f"{name}.png")


def require_sound(done: Outcome) -> None:
    """The gate: what differs is printed, and a DraftwoodError if anything does."""
    from draftwood.bench.gates import require_identical

    differences = [line for one in done.series for row in one.rows for line in row.differences]
    plain(differences)
    require_identical(differences)


def prompt_of(engine: Engine, text: Path | None, length: int) -> LongPrompt:
    """The tokens to read."""
    from draftwood.bench.prompts import long

    if engine.tokenizer is None:
        raise UsageError(f"{engine.target.name} has no tokenizer, so it cannot read a text.")
    return long.repeated(engine.tokenizer, length) if text is None else long.of_file(engine.tokenizer, text, length)


def trial_of(engine: Engine, wishes: Wishes) -> Trial:
    """How the engine's draft decodes; UsageErrors where it cannot."""
    from draftwood.bench.suites.ctx import Trial
    from draftwood.bench.suites.rounds import Wanted, shape_of
    from draftwood.decode.tree import ROOT_ONLY
    from draftwood.engine.config import METHODS, Shaping

    drafter, assumed = engine.drafter, wishes.assume_acceptance
    if wishes.round is None:
        longest = METHODS["chain"](Shaping(), drafter.block_size).budget
        one = Wanted(f"chain:{longest}", "chain", longest) if drafter.max_depth else Wanted("ar", "ar", None)
    else:
        one = parsed(wishes.round)
    shape = shape_of(one, drafter, assumed, "--round")
    if shape != ROOT_ONLY and not drafter.max_depth:
        raise UsageError(f"--round is {one.name!r}, but there is no draft; name one with --draft, or take --round ar.")
    return Trial(one.name, shape, wishes.n_gen, wishes.repeats, None if shape == ROOT_ONLY else assumed)


class Measurement:
    """Jobs on an engine each, and what came of them. load: the engine of a job."""

    def __init__(self, load: Callable[[Job], Engine], jobs: Sequence[Job], wishes: Wishes, clock: Clock) -> None:
        self._load, self._jobs, self._wishes, self._clock = load, list(jobs), wishes, clock
        self._series: list[Series] = []
        self._without: list[str] = []
        self._drafts: list[str] = []
        self._about: tuple[Mapping[str, Any], bool, LongPrompt, Trial] | None = None

    def run(self) -> Outcome:
        """All of them, or as many as the limit or Ctrl-C leave time for; a job that finds no memory is passed over.

        A DraftwoodError where the limit or the memory leaves nothing to show, a KeyboardInterrupt where Ctrl-C does.
        """
        import torch

        from draftwood.bench import memory
        from draftwood.bench.clock import OutOfTime, duration
        from draftwood.cache.registry import kv_label

        limit = duration(self._clock.seconds or 0)
        missing, interrupted = list[str](), False
        try:
            for job in self._jobs:
                try:
                    self._sweep(job)
                except (torch.OutOfMemoryError, DeviceError) as error:
                    if len(self._jobs) == 1 and not any(one.rows for one in self._series):
                        raise
                    self._without.append(f"{kv_label(job.kv)} with {short(job.draft)}")
                    lacking = isinstance(error, torch.OutOfMemoryError)  # what torch says is for those who program it
                    note(f"{self._without[-1]}: {'there is not enough memory for it' if lacking else error}")
                memory.forget()
        except OutOfTime:
            missing.append(f"LIMIT of {limit} REACHED: what was measured until then")
        except KeyboardInterrupt:
            interrupted = True
            missing.append("INTERRUPTED: what was measured until then")
        series, without = [one for one in self._series if one.rows], ", ".join(self._without)
        if self._about is None or not series:
            if interrupted:
                raise KeyboardInterrupt
            if without:
                raise DraftwoodError(
                    f"there was no memory for a first row ({without}); name shorter --contexts or smaller KV types."
                )
            raise DraftwoodError(
                f"the --limit of {limit} passed before a first row was measured; give more time, or shorter --contexts."
            )
        if without:
            missing.append(f"NO MEMORY for {without}, so what is said of it is not whole")
        facts, synthetic, prompt, trial = self._about
        drafts = {"draft": ", ".join(self._drafts)}
        return Outcome({**facts, **drafts}, synthetic, prompt, trial, series, "; ".join(missing) or None, interrupted)

    def _sweep(self, job: Job) -> None:
        """One job; what it allocates is gone when it is over."""
        import torch

        from draftwood.bench.clock import duration
        from draftwood.bench.suites.ctx import Sweep, require_captured

        self._clock.check()
        begun = self._clock.elapsed
        engine = self._load(job)
        trial = trial_of(engine, self._wishes)
        prompt = prompt_of(engine, self._wishes.text, max(one.points[-1].tokens for one in self._jobs))
        whole = ""
        if self._about is None and trial.assumed is not None:
            require_captured(engine, [one.kv for one in self._jobs])
        sweep = Sweep(engine, short(job.draft), torch.tensor(prompt.ids), job.points, trial, self._clock)
        seconds = sweep.estimate()
        if self._about is None:
            whole = _whole(self._jobs, seconds, self._clock.elapsed - begun)
        self._about = engine.describe(), engine.synthetic, prompt, trial
        name = engine.describe()["draft"] or "none"
        self._drafts += [name] if name not in self._drafts else []
        what = sweep.series.kv if trial.name == "ar" else f"{sweep.series.kv}, draft {sweep.series.draft}"
        note(f"{what}: at most about {duration(seconds)}{whole}; {duration(self._clock.elapsed)} so far")
        self._series.append(sweep.series)
        with steps(2 * len(job.points)) as begin:
            for _ in sweep.run(begin):
                self._clock.check()


def _whole(jobs: Sequence[Job], seconds: float, ready: float) -> str:
    """How long all jobs take if each goes like the first one, which takes `seconds`, by the tokens that they read, and
    `ready` seconds before that, which have passed, to be loaded and made ready."""
    from draftwood.bench.clock import duration

    if len(jobs) < 2:
        return ""
    share = sum(job.points[-1].tokens for job in jobs) / jobs[0].points[-1].tokens
    total = seconds * share + ready * (len(jobs) - 1)
    return f", all {len(jobs)} with loading about {duration(total)} if they go alike"
