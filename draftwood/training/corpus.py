"""The text that the target wrote, as arrays; and the filters it goes through before anything is learnt from it.

Letters: n sequences, t tokens of all of them. Filters and shares: SPEC-draft-training section 3.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from draftwood.errors import FormatError
from draftwood.training.overlap import RunIndex, run_hashes, scatter
from draftwood.training.prompts.scripts import Script
from draftwood.training.roles import FED, SUPERVISED, stretches

HELD_OUT_ONE_IN: Final = 48
"""One source in so many is held out; with sequences spread over sources that is about 1,250 of 60,000."""

_LEAST_ANSWER: Final = 24
_JUDGED: Final = 256
_MOST_OF_ONE: Final = 0.40
_LEAST_DISTINCT: Final = 0.30
_LOOP_RUN: Final = 16
_LOOP_RUNS: Final = 3
_LEAST_ZLIB: Final = 0.40
_KEPT_LOOPS: Final = 0.03
_SAME_USER: Final = (64, 1)
_SAME_ANSWER: Final = (32, 3)
"""Tokens that are compared, and how many sequences may share them."""

Tokens = npt.NDArray[np.integer[Any]]
Roles = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Corpus:
    """Sequences of ids.

    tokens: uint16 [t], uint32 for vocabularies beyond 65,536. roles: uint8 [t]. offsets: int64 [n + 1].
    part: uint8 [n], index into parts. source: uint64 [n], hash of what the script was made from. greedy: bool [n].
    looping: bool [n], sequences whose loop was left in; they must not carry a score. held_out: bool [n].
    """

    tokens: Tokens
    roles: Roles
    offsets: npt.NDArray[np.int64]
    part: npt.NDArray[np.uint8]
    parts: tuple[str, ...]
    source: npt.NDArray[np.uint64]
    greedy: npt.NDArray[np.bool_]
    looping: npt.NDArray[np.bool_]
    held_out: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.part)

    def sequence(self, index: int) -> tuple[Tokens, Roles]:
        """Tokens and roles of one sequence (views)."""
        inside = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.tokens[inside], self.roles[inside]

    def select(self, mask: npt.NDArray[np.bool_]) -> Corpus:
        """The sequences of a mask, bool [n], in their order."""
        lengths = np.diff(self.offsets)
        inside = np.repeat(mask, lengths)
        chosen = {name: getattr(self, name)[mask] for name in _BY_SEQUENCE}
        return Corpus(self.tokens[inside], self.roles[inside], _offsets(lengths[mask]), parts=self.parts, **chosen)

    @staticmethod
    def concat(corpora: Sequence[Corpus]) -> Corpus:
        """All sequences of some corpora (at least one), one after the other."""
        parts = tuple(dict.fromkeys(name for corpus in corpora for name in corpus.parts))
        part = [np.array([parts.index(name) for name in corpus.parts], np.uint8)[corpus.part] for corpus in corpora]
        joined = {name: np.concatenate([getattr(corpus, name) for corpus in corpora]) for name in _ARRAYS}
        lengths = np.concatenate([np.diff(corpus.offsets) for corpus in corpora])
        return Corpus(**{**joined, "part": np.concatenate(part), "offsets": _offsets(lengths)}, parts=parts)

    def save(self, path: Path) -> None:
        """Write one compressed `.npz`."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez_compressed(path, parts=np.array(self.parts, np.str_), **arrays)

    @staticmethod
    def load(path: Path) -> Corpus:
        """Read what `save` wrote. Raises FormatError for another file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS}
                parts = tuple(file["parts"].tolist())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise FormatError(
                f"{path.name} does not hold generated text; run the stage that makes it again."
            ) from error
        return Corpus(**arrays, parts=parts)

    def sha256(self) -> str:
        """Hex digest over everything."""
        digest = hashlib.sha256(repr(self.parts).encode())
        for name in _ARRAYS:
            array = getattr(self, name)
            digest.update(f"{name} {array.dtype.str} {len(array)} ".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


_ARRAYS: Final = tuple(entry.name for entry in dataclasses.fields(Corpus) if entry.name != "parts")
_BY_SEQUENCE: Final = ("part", "source", "greedy", "looping", "held_out")


class CorpusWriter:
    """Collects finished sequences. vocabulary: entries of the target's, which decides how wide an id is stored."""

    def __init__(self, vocabulary: int) -> None:
        self._type = np.uint16 if vocabulary <= 1 << 16 else np.uint32
        self._tokens: list[Tokens] = []
        self._roles: list[Roles] = []
        self._scripts: list[tuple[str, int, bool]] = []

    def __len__(self) -> int:
        return len(self._scripts)

    def add(self, script: Script, tokens: npt.ArrayLike, roles: npt.ArrayLike) -> None:
        """One sequence: ids and roles of its tokens, of one length."""
        self._tokens.append(np.asarray(tokens).astype(self._type))
        self._roles.append(np.asarray(roles).astype(np.uint8))
        self._scripts.append((script.part, source_hash(script.source), script.greedy))

    def corpus(self) -> Corpus:
        """Everything added so far; nothing is held out yet."""
        parts = tuple(dict.fromkeys(part for part, _, _ in self._scripts))
        count = len(self._scripts)
        return Corpus(
            tokens=np.concatenate([np.zeros(0, self._type), *self._tokens]),
            roles=np.concatenate([np.zeros(0, np.uint8), *self._roles]),
            offsets=_offsets([len(tokens) for tokens in self._tokens]),
            part=np.array([parts.index(part) for part, _, _ in self._scripts], np.uint8),
            parts=parts,
            source=np.array([source for _, source, _ in self._scripts], np.uint64),
            greedy=np.array([greedy for _, _, greedy in self._scripts], np.bool_),
            looping=np.zeros(count, np.bool_),
            held_out=np.zeros(count, np.bool_),
        )


def source_hash(source: str) -> int:
    """64 bits that stand for a script's source."""
    return int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest(), "little")


def held_out(source: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.bool_]:
    """Which sequences are kept from training: decided by their source and the seed alone."""
    chosen: npt.NDArray[np.bool_] = scatter(source ^ np.uint64(seed)) % np.uint64(HELD_OUT_ONE_IN) == 0
    return chosen


def clean(
    corpus: Corpus, benchmark: RunIndex | None, stop_ids: Collection[int], seed: int
) -> tuple[Corpus, dict[str, int]]:
    """The corpus through all filters, its held-out sources marked; and what each filter did.

    An answer is cut where it begins to loop, and everything behind the cut goes, later turns too; a few looping
    sequences are left whole and marked. From the first degenerate answer on a sequence is dropped. Answers that are
    too short stay as context but are no longer learnt. What is left must have an answer, must not share a run with
    the benchmark, and must not begin as another sequence does.

    Counts: answers for `loops_cut`, `short`, `repetitive` and `compressible`; sequences for the others.
    """
    counts: Counter[str] = Counter()
    spared = np.random.default_rng(seed).random(len(corpus)) < _KEPT_LOOPS
    stops = np.array(sorted(stop_ids), np.int64)
    users: Counter[bytes] = Counter()
    answers: Counter[bytes] = Counter()
    kept: list[int] = []
    tokens_out: list[Tokens] = []
    roles_out: list[Roles] = []
    looping = np.zeros(len(corpus), np.bool_)
    for index in range(len(corpus)):
        tokens, roles = corpus.sequence(index)
        roles, looping[index] = _without_bad_answers(tokens, roles, bool(spared[index]), counts)
        taught = np.flatnonzero(roles == SUPERVISED)
        if not len(taught):
            counts["without_answer"] += 1
            continue
        tokens, roles = tokens[: taught[-1] + 1], roles[: taught[-1] + 1]
        if benchmark is not None and benchmark.shares_run(tokens):
            counts["benchmark"] += 1
            continue
        user = user_turn(tokens, int(taught[0]), stops)[: _SAME_USER[0]].tobytes()
        answer = tokens[taught[0] : stretches(roles == SUPERVISED)[0][1]][: _SAME_ANSWER[0]].tobytes()
        if users[user] >= _SAME_USER[1]:
            counts["same_user"] += 1
            continue
        if answers[answer] >= _SAME_ANSWER[1]:
            counts["same_answer"] += 1
            continue
        users[user] += 1
        answers[answer] += 1
        kept.append(index)
        tokens_out.append(tokens)
        roles_out.append(roles)
    chosen = np.array(kept, np.int64)
    cleaned = Corpus(
        tokens=np.concatenate([corpus.tokens[:0], *tokens_out]),
        roles=np.concatenate([corpus.roles[:0], *roles_out]),
        offsets=_offsets([len(tokens) for tokens in tokens_out]),
        part=corpus.part[chosen],
        parts=corpus.parts,
        source=corpus.source[chosen],
        greedy=corpus.greedy[chosen],
        looping=looping[chosen],
        held_out=held_out(corpus.source[chosen], seed),
    )
    return cleaned, {"sequences": len(corpus), **{name: counts[name] for name in _FILTERS}, "kept": len(kept)}


_FILTERS: Final = (
    "loops_cut",
    "loops_left",
    "short",
    "repetitive",
    "compressible",
    "without_answer",
    "benchmark",
    "same_user",
    "same_answer",
)


def _without_bad_answers(tokens: Tokens, roles: Roles, spare_loop: bool, counts: Counter[str]) -> tuple[Roles, bool]:
    """The roles with SUPERVISED taken from all that is not to be learnt; and whether a loop was left in."""
    roles = roles.copy()
    for first, stop in stretches(roles == SUPERVISED):
        answer = tokens[first:stop]
        loop = loop_start(answer)
        if loop is not None:
            if spare_loop:
                counts["loops_left"] += 1
                roles[stop:] = FED
                return roles, True
            counts["loops_cut"] += 1
            answer = answer[:loop]
            roles[first + loop :] = FED
        if len(answer) < _LEAST_ANSWER:
            counts["short"] += 1
            roles[first:stop] = FED
        elif fault := degenerate(answer):
            counts[fault] += 1
            roles[first:] = FED
        if loop is not None or not (roles[stop:] == SUPERVISED).any():
            break
    return roles, False


def loop_start(answer: Tokens) -> int | None:
    """Where an answer begins to repeat itself, None if it does not.

    It does where three runs of 16 tokens in a row (48 tokens) have each been written before in the answer, wherever
    that was: so a loop of any period is found 48 tokens after its first round.
    """
    hashes = run_hashes(answer, _LOOP_RUN)
    reach = _LOOP_RUN * (_LOOP_RUNS - 1)
    if len(hashes) <= reach:
        return None
    order = np.argsort(hashes, kind="stable")
    again = np.zeros(len(hashes), np.bool_)
    again[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    repeats = again[reach:].copy()
    for back in range(0, reach, _LOOP_RUN):
        repeats &= again[back : back + len(repeats)]
    found = int(repeats.argmax())
    return found if repeats[found] else None


def degenerate(answer: Tokens) -> str | None:
    """Name of the fault of an answer that says nearly nothing, or None.

    It is compressed as two bytes an id. 0.40 of those is what 0.25 of the text's own bytes is: answers of
    SmolLM2-135M-Instruct with text ratios of 0.23 to 0.29 had id ratios of 0.34 to 0.50.
    """
    judged = answer[:_JUDGED]
    occurrences = np.unique(judged, return_counts=True)[1]
    if occurrences.max() > _MOST_OF_ONE * len(judged) or len(occurrences) < _LEAST_DISTINCT * len(judged):
        return "repetitive"
    compressed = len(zlib.compress(answer.astype(answer.dtype.newbyteorder("<")).tobytes()))
    return "compressible" if compressed < _LEAST_ZLIB * 2 * len(answer) else None


def user_turn(tokens: Tokens, answer: int, stops: npt.NDArray[np.int64]) -> Tokens:
    """What stands before the answer that begins at `answer`, without the system block: the user's turn with its tag.

    Before a first answer every turn ends with a fed stop token; a text without any is taken from its beginning.
    """
    ends = np.flatnonzero(np.isin(tokens[:answer], stops))
    return tokens[int(ends[-2]) + 1 if len(ends) > 1 else 0 : answer]


def manifest(corpus: Corpus, counts: dict[str, int]) -> dict[str, Any]:
    """What a corpus holds, for the run card: plain numbers and texts. counts: of `clean`."""
    lengths = np.diff(corpus.offsets)
    taught = np.add.reduceat(
        np.concatenate((corpus.roles == SUPERVISED, [False])).astype(np.int64), corpus.offsets[:-1]
    ) * (lengths > 0)

    def facts(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
        answers = int(taught[mask].sum())
        return {
            "sequences": int(mask.sum()),
            "sources": len(np.unique(corpus.source[mask])),
            "tokens": int(lengths[mask].sum()),
            "answer_tokens": answers,
            "greedy_share": round(float(taught[mask & corpus.greedy].sum()) / answers, 4) if answers else 0.0,
        }

    return {
        **facts(np.ones(len(corpus), np.bool_)),
        "held_out": facts(corpus.held_out),
        "looping": facts(corpus.looping),
        "parts": {name: facts(corpus.part == number) for number, name in enumerate(corpus.parts)},
        "filters": dict(counts),
        "sha256": corpus.sha256(),
    }


def _offsets(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(np.asarray(lengths, np.int64)))).astype(np.int64)
