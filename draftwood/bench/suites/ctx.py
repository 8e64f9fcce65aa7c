"""Reading and decoding by length of context: one growing prompt for each KV type and draft serves all lengths.

At each length the sequence is marked, rounds are timed from there, and what they committed is dropped: the reading goes
on from the prompt's own tokens, as if nothing had been decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from draftwood.batch import GRANULE, PASS_TOKENS
from draftwood.bench import memory
from draftwood.bench.clock import Clock
from draftwood.bench.decoding import WARM_UP, Decoding, now
from draftwood.bench.gates import degenerate, difference
from draftwood.bench.measure import Sample, sample
from draftwood.bench.memory import Memory
from draftwood.cache.registry import kv_label
from draftwood.decode.drafters.none import NoDrafter
from draftwood.decode.tree import ROOT_ONLY, TreeShape
from draftwood.engine.engine import Engine
from draftwood.engine.loader import AUTO_DRAFT_KV, pick_draft_kv
from draftwood.errors import UsageError
from draftwood.planner.plan import KVPair
from draftwood.planner.report import size_name
from draftwood.prefill.dense import read_prompt

CONTEXTS = {"cpu": (128, 1 << 10), "cuda": (128, *(k << 10 for k in (4, 16, 64, 128, 192, 256)))}
"""What is swept if nothing is said, as far as the model's context goes."""

_SEED = 1


@dataclass(frozen=True)
class Point:
    """A length to measure at. context: as it was asked for; tokens: read before the decoding, whole granules."""

    context: int
    tokens: int


@dataclass(frozen=True)
class Trial:
    """How it is decoded. name: of the rounds with guesses, as in "tree:22". shape: theirs, ROOT_ONLY for none.

    n_gen: tokens a run decides at least. repeats: runs of each. assumed: tokens that a round with guesses is told to
    decide on average, None for what the target says.
    """

    name: str
    shape: TreeShape
    n_gen: int
    repeats: int = 1
    assumed: float | None = None


@dataclass(frozen=True)
class Decoded:
    """Runs of one shape from one place.

    token_ids: the answer's, behind the token that reading decided. round: milliseconds of a round. acceptance_length:
    tokens decided in one. degenerate: whether the answer repeats itself, which flatters them; not looked at where the
    acceptance is told.
    """

    token_ids: tuple[int, ...]
    round: Sample
    acceptance_length: float
    degenerate: bool

    @property
    def tokens_per_second(self) -> float:
        """Of the median run."""
        return 1000 * self.acceptance_length / self.round.middle


@dataclass(frozen=True)
class Row:
    """What was measured at one length. read_seconds: for all of its tokens, decoding not counted.

    drafted: None where no guesses are made. memory: None on a CPU. differences: where tokens are not plain decoding's.
    """

    point: Point
    read_seconds: float
    plain: Decoded
    drafted: Decoded | None
    memory: Memory | None
    differences: tuple[str, ...] = ()

    @property
    def read_tokens_per_second(self) -> float:
        """Of the whole prompt."""
        return self.point.tokens / self.read_seconds


@dataclass
class Series:
    """One KV type with one draft, as far as it has been measured. bits: a value, the mean of K and V.

    draft: its name, "none" without guesses. capacity: tokens that the caches were allocated for. places: what frees
    memory in this engine, as in "compact weights".
    """

    kv: str
    bits: float
    draft: str
    capacity: int
    rows: list[Row] = field(default_factory=list)
    places: tuple[str, ...] = ()


def points(contexts: Sequence[int], n_gen: int, ends: int) -> list[Point]:
    """The lengths in ascending order; where the answer would go beyond the model's context, less is read.

    A UsageError for what is too short, too long, or the same as another after rounding down to whole granules.
    """
    found: dict[int, Point] = {}
    for context in sorted(contexts):
        if context > ends:
            raise UsageError(f"--contexts names {context:,} tokens, but the model's context ends at {ends:,}.")
        tokens = min(context, ends - n_gen)
        tokens -= tokens % GRANULE
        if tokens < GRANULE:
            raise UsageError(
                f"--contexts names {context:,} tokens, which leaves less than {GRANULE} to read; name longer ones or a "
                "smaller --n-gen."
            )
        if tokens in found:
            raise UsageError(
                f"--contexts names {found[tokens].context:,} and {context:,}, but for both {tokens:,} tokens are read, "
                f"whole granules of {GRANULE} that leave room for the answer; name one of them."
            )
        found[tokens] = Point(context, tokens)
    return list(found.values())


def usual_contexts(device: str, ends: int) -> list[int]:
    """What is swept if nothing is said."""
    return [context for context in CONTEXTS[device] if context <= ends]


def require_captured(engine: Engine, pairs: Sequence[KVPair]) -> None:
    """A UsageError for KV types whose rounds are not captured, as an assumed acceptance needs."""
    for pair in dict.fromkeys(pairs):
        if not engine.target.model.new_sequence(pair, GRANULE).on_device:
            raise UsageError(
                f"an acceptance can be assumed in rounds captured on a GPU only, which KV type {kv_label(pair)} or "
                "this arithmetic does not allow; leave it or --assume-acceptance out."
            )


class Sweep:
    """An engine's KV types with its draft, read and decoded at all points in turn.

    Its context must hold the last point and the answer. draft: what to call it. ids: int64, the prompt, as long as the
    last point at least. clock: looked at before every pass and round.
    """

    @torch.inference_mode()
    def __init__(
        self,
        engine: Engine,
        draft: str,
        ids: Tensor,
        at: Sequence[Point],
        trial: Trial,
        clock: Clock,
    ) -> None:
        model = engine.target.model
        self.engine, self.points, self.trial = engine, list(at), trial
        self.model, self.device, self._clock = model, engine.device, clock
        drafts = trial.shape != ROOT_ONLY
        self.drafter = engine.drafter if drafts else NoDrafter()
        runner, drafted = engine.captured(False), engine.captured(True) if drafts else None
        if trial.assumed is not None and drafted is None:
            raise UsageError(
                "an acceptance can be assumed in rounds captured on a GPU only, which these KV types, arithmetic or "
                "this draft do not allow; leave them or --assume-acceptance out."
            )
        self.sequence = (
            model.new_sequence(engine.kv, at[-1].tokens + trial.n_gen) if runner is None else runner.sequence
        )
        if runner is not None:
            self.sequence.truncate(0)
        self._ids = ids[: at[-1].tokens].to(model.device)
        self._plain = Decoding(model, self.sequence, NoDrafter(), runner)
        self._drafted = Decoding(model, self.sequence, self.drafter, drafted) if drafts else None
        self._start = self.sequence.mark()
        self.series = Series(
            kv_label(engine.kv),
            sum(kind.bits(model.spec.head_dim) for kind in engine.kv) / 2,
            draft if drafts else "none",
            self.sequence.capacity,
            places=_places(engine),
        )

    @torch.inference_mode()
    def estimate(self) -> float:
        """Seconds that `run` will take, at most: from passes and rounds timed at both ends of the longest context.

        It also compiles what a GPU needs. The far end is filled with random rows, which takes no reading.
        """
        longest = self.points[-1].tokens
        probe = min(PASS_TOKENS, max(GRANULE, longest // 8 // GRANULE * GRANULE))
        for length in {min(self.points[0].tokens, PASS_TOKENS), probe}:
            self._probe(0, length)  # compiles
        near, far = self._probe(0, probe), self._probe(longest - probe, probe)
        slope = (far[0] - near[0]) / max(longest - probe, 1)
        total = sum(near[0] + slope * place for place in range(0, longest, probe))
        runs = self.trial.repeats + WARM_UP / self.trial.n_gen
        rounds = [self.trial.n_gen * runs, self.trial.n_gen * runs / (self.trial.assumed or 1)]
        for point in self.points:
            for count, first, last in zip(rounds, near[1:], far[1:], strict=False):
                total += count * (first + (last - first) * point.tokens / longest)
        return total

    def _probe(self, depth: int, count: int) -> list[float]:
        """Seconds of a pass over `count` tokens behind `depth` random rows, and of a plain and a drafted round then."""
        self.sequence.rewind(self._start)
        self.drafter.start(self._ids)
        if depth:
            self.sequence.fill_random(depth, _SEED)
            self.drafter.fill_random(depth, _SEED)
        seconds, pending = self._read(self._ids[:count])
        found = [seconds]
        for decoding, shape in self._ways():
            here = self._mark()
            self._run(decoding, shape, pending, WARM_UP)
            self._rewind(here)
            _, rounds, seconds = self._run(decoding, shape, pending, WARM_UP)
            self._rewind(here)
            found.append(seconds / rounds)
        return found

    @torch.inference_mode()
    def run(self, begin: Callable[[str], None]) -> Iterator[Row]:
        """Measure at one point after the other, each noted in `series`; `begin` is told what comes next.

        Every shape's rounds run once before memory is looked at: capturing them takes memory of the driver's, and gives
        back what torch's pool holds for nobody.
        """
        self._probe(0, GRANULE)
        self.sequence.rewind(self._start)
        self.drafter.start(self._ids)
        read, seconds = 0, 0.0
        for point in self.points:
            begin(f"{self.series.kv}: reading up to {size_name(point.context)}")
            spent, pending = self._read(self._ids[read : point.tokens])
            read, seconds = point.tokens, seconds + spent
            begin(f"{self.series.kv}: decoding after {size_name(point.context)}")
            row = self._row(point, seconds, pending)
            self.series.rows.append(row)
            yield row

    def _row(self, point: Point, seconds: float, pending: Tensor) -> Row:
        here, made, texts = self._mark(), [], []
        for decoding, shape in self._ways():
            self._run(decoding, shape, pending, WARM_UP)
            runs = []
            for _ in range(self.trial.repeats):
                self._rewind(here)
                runs.append(self._run(decoding, shape, pending))
            self._rewind(here)
            emitted = [ids for ids, _, _ in runs]
            decided, rounds = len(emitted[0]), runs[0][1]
            times = sample(1000 * spent / count for _, count, spent in runs)
            texts.append([ids[: self.trial.n_gen] for ids in emitted])
            answer, told = texts[-1][0], shape != ROOT_ONLY and self.trial.assumed is not None
            made.append(Decoded(tuple(answer), times, decided / rounds, not told and degenerate(answer)))
        return Row(
            point,
            seconds,
            made[0],
            made[1] if len(made) > 1 else None,
            memory.measure(self.engine),
            tuple(self._differences(point, texts)),
        )

    def _differences(self, point: Point, texts: Sequence[Sequence[list[int]]]) -> Iterator[str]:
        """Where runs differ from plain decoding's first one, or told ones from their own first."""
        for way, runs in enumerate(texts):
            expected = texts[way if self.trial.assumed is not None else 0][0]
            for ids in runs:
                parting = difference(expected, ids)
                if parting is not None:
                    yield f"{self.series.kv}, {size_name(point.context)}, {('ar', self.trial.name)[way]}: {parting}"

    def _ways(self) -> list[tuple[Decoding, TreeShape]]:
        plain = [(self._plain, ROOT_ONLY)]
        return plain if self._drafted is None else [*plain, (self._drafted, self.trial.shape)]

    def _mark(self) -> tuple[Any, Any]:
        return self.sequence.mark(), self.drafter.mark()

    def _rewind(self, here: tuple[Any, Any]) -> None:
        self.sequence.rewind(here[0])
        self.drafter.rewind(here[1])

    def _read(self, ids: Tensor) -> tuple[float, Tensor]:
        """Seconds to read tokens, and the token after them (int64 [])."""
        start = now(self.device)
        hidden = read_prompt(
            self.model,
            self.sequence,
            ids,
            self.drafter.wants,
            self.drafter.observe,
            progress=lambda done: self._clock.check(),
        )
        pending = self.model.logits(hidden).argmax(-1).squeeze(0)
        return now(self.device) - start, pending

    def _run(
        self, decoding: Decoding, shape: TreeShape, pending: Tensor, most: int | None = None
    ) -> tuple[list[int], int, float]:
        """Tokens decided until there are enough or after `most` rounds, the rounds, and their seconds."""
        decoder, emitted, rounds = decoding.begin(pending), list[int](), 0
        start = now(self.device)
        while len(emitted) < self.trial.n_gen and rounds != most:
            self._clock.check()
            emitted += decoder.round(shape).emitted
            rounds += 1
        return emitted, rounds, now(self.device) - start


def _places(engine: Engine) -> tuple[str, ...]:
    """What is not as it is fastest or usual, so that more fits."""
    config, kind = engine.config, kv_label(pick_draft_kv(engine.config.draft_kv, engine.device))
    tight = bool(engine.drafter.form) and kind != AUTO_DRAFT_KV[engine.device]
    found = {
        "table on host": config.token_table == "host",
        "compact weights": config.weights == "compact",
        f"draft K/V {kind}": tight,
    }
    return tuple(what for what, so in found.items() if so)
