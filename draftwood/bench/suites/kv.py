"""What each KV type costs in fidelity: its bits, the errors of the rows it keeps, and how far the model's odds move.

Windows of real text are read by prefill, once for each case, and every row's odds of the next token are compared with
those that the same weights give over an f16 cache. Prefill encodes a pass's rows before it attends them (`KVState`), so
what a row attends, itself included, is what a decode pass would attend: decoded codes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from draftwood.batch import MAX_ROWS, PASS_TOKENS, ForwardInput
from draftwood.bench.gates import require_no_divergence
from draftwood.bench.prompts.humaneval import Prompt
from draftwood.bench.suites.he import Method, SuiteResult, run_suite
from draftwood.cache.base import Plane
from draftwood.cache.kv import KVState
from draftwood.cache.registry import KV_TYPES, check_width, kv_label, kv_pair
from draftwood.cache.spec import KVSpec
from draftwood.decode.params import SamplingParams
from draftwood.engine.engine import Engine
from draftwood.models.base import Model
from draftwood.models.spec import ModelSpec

REFERENCE = "f16"
TAIL = 0.999
METHODS = (Method("ar"), Method("chain"))
MIXED = ("f16/q8_0", "bf16/tq2_0", "q8_0/q4_0", "q8_0/tq3_0", "q5_1/q4_0", "tq4_0/tq3_0")
UNROTATED = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Types whose code is also used without a rotation elsewhere; measured so for comparison, not offered."""


@dataclass(frozen=True)
class Case:
    """KV types to measure. rotated: False measures the codes of rows as they are."""

    kv: tuple[KVSpec, KVSpec]
    rotated: bool = True

    @property
    def kv_name(self) -> str:
        """As in "q8_0/q4_0"."""
        return "/".join(kind.name for kind in self.kv)

    @property
    def label(self) -> str:
        """As in "q8_0", "q8_0/q4_0" and "q8_0 unrotated"."""
        return kv_label(self.kv) + ("" if self.rotated else " unrotated")

    def bits(self, head_dim: int) -> float:
        """Bits a value, the mean of K and V."""
        return sum(kind.bits(head_dim) for kind in self.kv) / 2

    def token_bytes(self, spec: ModelSpec) -> int:
        """Bytes of a token's K and V in all layers."""
        return sum(kind.row_bytes(spec.head_dim) for kind in self.kv) * spec.kv_heads * sum(spec.attention)


def cases(names: Sequence[str] | None, head_dim: int, unrotated: bool = True) -> list[Case]:
    """The cases to measure, the reference first.

    names: "K" or "K/V" each, None for every type and the mixed pairs that the head width allows. unrotated: add the
    types of UNROTATED without their rotation.
    """
    if names is None:
        chosen = [pair for pair in map(kv_pair, (*KV_TYPES, *MIXED)) if _fits(pair, head_dim)]
    else:
        chosen = list(map(kv_pair, names))
    rotated = list(dict.fromkeys([kv_pair(REFERENCE), *chosen]))
    for pair in rotated:
        check_width(pair, head_dim)
    plain = [kv_pair(name) for name in UNROTATED if unrotated]
    return [*map(Case, rotated), *(Case(pair, rotated=False) for pair in plain if pair in rotated)]


def _fits(pair: tuple[KVSpec, KVSpec], head_dim: int) -> bool:
    return all(head_dim % kind.head_multiple == 0 for kind in pair)


class MeteredPlane(Plane):
    """A plane that notes what became of each row it was given.

    rotated: False keeps the rows as they are given, by undoing a coded plane's rotation before it happens. error, size:
    float64 [rows], squared lengths of the difference and of the row, over all heads.
    """

    def __init__(self, plane: Plane, rotated: bool) -> None:
        super().__init__(plane.heads, plane.head_dim, plane.capacity, plane.device)
        self._plane, self._rotated = plane, rotated
        self.error = torch.zeros(plane.rows, dtype=torch.float64, device=plane.device)
        self.size = torch.zeros_like(self.error)

    def write(self, rows: Tensor, at: int) -> None:
        """See Plane."""
        self._plane.write(rows if self._rotated else self._plane.leave(rows), at)
        end = at + len(rows)
        kept = self.leave(self.read(at, end).transpose(0, 1).contiguous())
        self.error[at:end] = (kept - rows).double().square().sum((1, 2))
        self.size[at:end] = rows.double().square().sum((1, 2))

    def move(self, source: Tensor, at: int) -> None:
        """See Plane."""
        self._plane.move(source, at)

    def read(self, start: int, stop: int) -> Tensor:
        """See Plane."""
        return self._plane.read(start, stop)

    def enter(self, rows: Tensor) -> Tensor:
        """See Plane."""
        return self._plane.enter(rows) if self._rotated else rows

    def leave(self, rows: Tensor) -> Tensor:
        """See Plane."""
        return self._plane.leave(rows) if self._rotated else rows

    def buffers(self) -> dict[str, Tensor]:
        """See Plane."""
        return self._plane.buffers()


@dataclass(frozen=True)
class Part:
    """One case over one window.

    kl: float64 [n], nats, for each token. same: tokens whose likeliest successor is the reference's. key, value:
    squared errors and squared lengths of all rows, summed.
    """

    kl: Tensor
    same: int
    key: tuple[float, float]
    value: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """What a case costs.

    bits: a value, the mean of K and V. token_bytes: of K and V in all layers. key_error, value_error: length of the
    rounding error relative to the rows', over all of them. kl, kl_tail: mean and 99.9th percentile over the tokens, in
    nats. same_top: share of tokens. acceptance_length: None where it was not measured.
    """

    case: Case
    bits: float
    token_bytes: int
    key_error: float
    value_error: float
    kl: float
    kl_tail: float
    same_top: float
    acceptance_length: float | None = None


class Fidelity:
    """The figures of all cases, the first of which must be the reference, as far as they have been measured.

    parts: for each case one of every window that all cases have read. runs: for each case that has drafted.
    """

    def __init__(self, engine: Engine, chosen: Sequence[Case]) -> None:
        self.engine, self.cases = engine, list(chosen)
        self.parts: list[list[Part]] = [[] for _ in chosen]
        self.runs: dict[Case, SuiteResult] = {}

    def read(self, texts: Sequence[Sequence[int]], begin: Callable[[str], None]) -> None:
        """Read windows of token ids over every case; `begin` is called with a label before each reading.

        Those are one more a window than there are cases: a DraftwoodError unless reading it again over the reference's
        cache changes nothing at all.
        """
        model = self.engine.target.model
        for number, text in enumerate(texts, start=1):
            label = f"window {number} of {len(texts)}"
            ids = torch.tensor(text, device=model.device)
            begin(f"{label}, {REFERENCE}")
            expected = model.logits(_read(model, ids, self.cases[0])[0])
            found: list[Part] = []
            for case in self.cases:
                begin(f"{label}, {case.label}")
                hidden, keys, values = _read(model, ids, case)
                kl, same = compare(expected, hidden, model.logits)
                if not found:
                    require_no_divergence(REFERENCE, float(kl.abs().max()))
                found.append(Part(kl, same, _sums(keys, len(ids)), _sums(values, len(ids))))
            for parts, part in zip(self.parts, found, strict=True):
                parts.append(part)

    def draft(self, prompts: Sequence[Prompt], n_gen: int, begin: Callable[[str], None]) -> None:
        """Plain decoding and a chain of the engine's draft over every case that can be chosen, on the same weights."""
        for case in self.drafted:
            config = dataclasses.replace(self.engine.config, kv=case.kv_name)
            self.runs[case] = run_suite(
                Engine(config, self.engine.target, self.engine.drafter, self.engine.device),
                prompts,
                METHODS,
                SamplingParams(max_tokens=n_gen),
                report=lambda label, case=case: begin(f"{case.label}: {label}"),  # type: ignore[misc]
            )

    @property
    def drafted(self) -> list[Case]:
        """The cases that can draft."""
        return [case for case in self.cases if case.rotated]

    @property
    def tokens(self) -> int:
        """How many tokens every case has read."""
        return sum(len(part.kl) for part in self.parts[0])

    @property
    def differences(self) -> list[str]:
        """Where a drafted run's tokens are not plain decoding's, a line each."""
        return [f"{case.label}: {line}" for case, run in self.runs.items() for line in run.differences]

    def rows(self) -> list[Row]:
        """A row for each case, of at least one window."""
        spec = self.engine.target.model.spec
        return [self._row(case, spec, parts) for case, parts in zip(self.cases, self.parts, strict=True)]

    def _row(self, case: Case, spec: ModelSpec, parts: Sequence[Part]) -> Row:
        kl = torch.cat([part.kl for part in parts])
        run = self.runs.get(case)
        return Row(
            case,
            case.bits(spec.head_dim),
            case.token_bytes(spec),
            _relative([part.key for part in parts]),
            _relative([part.value for part in parts]),
            float(kl.mean()),
            float(kl.quantile(TAIL)),
            sum(part.same for part in parts) / len(kl),
            None if run is None else run.methods[1].acceptance_length,
        )


@torch.inference_mode()
def _read(model: Model, ids: Tensor, case: Case) -> tuple[Tensor, list[MeteredPlane], list[MeteredPlane]]:
    """The head's inputs [n, E] after a prefill, and the planes of K and of V.

    The states are the reference's on every device, as kernels write rows without asking a plane.
    """
    spec, sequence = model.spec, model.new_sequence(case.kv, len(ids))
    keys: list[MeteredPlane] = []
    values: list[MeteredPlane] = []
    for place, attends in enumerate(spec.attention):
        if attends:
            capacity = cast(KVState, sequence.states[place]).keys.capacity
            kv = sequence.states[place] = KVState(case.kv, spec.kv_heads, spec.head_dim, capacity, model.device)
            keys.append(MeteredPlane(kv.keys, case.rotated))
            values.append(MeteredPlane(kv.values, case.rotated))
            kv.keys, kv.values = keys[-1], values[-1]
    positions = torch.arange(len(ids), device=model.device)
    passes = zip(ids.split(PASS_TOKENS), positions.split(PASS_TOKENS), strict=True)
    hidden = [model.prefill(ForwardInput(*rows, offsets=(0, len(rows[0]))), sequence).hidden for rows in passes]
    return torch.cat(hidden), keys, values


@torch.inference_mode()
def compare(expected: Tensor, hidden: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    """KL divergence of a head's odds from the expected ones, in nats, float64 [n], and in how many rows both agree.

    expected: logits float32 [n, V]. hidden: the head's inputs [n, E], whose logits are never there all at once.
    """
    kl, same = [], 0
    for mine, rows in zip(expected.split(MAX_ROWS), hidden.split(MAX_ROWS), strict=True):
        theirs = head(rows)
        p, q = mine.double().log_softmax(-1), theirs.double().log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(-1).cpu())
        same += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
    return torch.cat(kl), same


def _sums(planes: Sequence[MeteredPlane], count: int) -> tuple[float, float]:
    """Squared errors and squared lengths of the first `count` rows of all layers."""
    return (
        sum(float(plane.error[:count].sum()) for plane in planes),
        sum(float(plane.size[:count].sum()) for plane in planes),
    )


def _relative(sums: Sequence[tuple[float, float]]) -> float:
    return math.sqrt(sum(error for error, _ in sums) / sum(size for _, size in sums))
