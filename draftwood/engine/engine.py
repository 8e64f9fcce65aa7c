"""The public engine: load once, then generate, stream or score."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from draftwood.batch import MAX_ROWS, PASS_TOKENS, ForwardInput
from draftwood.cache.registry import kv_label
from draftwood.cache.sequence import Sequence as SequenceState
from draftwood.decode.drafters.base import Drafter
from draftwood.decode.drafters.none import NoDrafter
from draftwood.decode.params import SamplingParams
from draftwood.decode.policy import Arm, AutoPolicy, arms_for
from draftwood.decode.round import Decoder, RoundOutcome
from draftwood.decode.sampling import KeyedDraw, Sampler
from draftwood.decode.stats import Statistics, StatisticsRecorder
from draftwood.decode.tree import ROOT_ONLY, TreeShape
from draftwood.engine import costs
from draftwood.engine.config import AUTO_CONTEXT, METHODS, EngineConfig, Shaping, check_method
from draftwood.engine.loader import (
    LoadedTarget,
    check_assumable,
    load_drafter,
    load_target,
    pick_device,
    pick_draft_kv,
    pick_kv,
)
from draftwood.engine.memory import MemoryPlan, lift_cap
from draftwood.engine.planning import prepare, settle
from draftwood.engine.request import GenerationEvent, GenerationResult
from draftwood.engine.runner import Runner, assumption, check_assumed
from draftwood.engine.sources import open_target
from draftwood.engine.warm_up import warm_up
from draftwood.errors import UsageError
from draftwood.models import known
from draftwood.prefill.dense import read_prompt
from draftwood.text.stream import TextStream

AUTO_DEPTHS: dict[str, dict[int, int]] = {"chain": {1: 1, 3: 3, 7: 7, 15: 15}, "tree": {3: 7, 7: 15, 15: 31}}
"""Depths that `auto` considers, with their budgets. A full pass then has whole tiles of four and eight rows."""

_BUSY = "this engine is already generating; finish or close that stream first."

_COMPILED_TOKENS = 3
"""One of the prompt, one of a round step by step, one of its graph."""


class Engine:
    """A target and its drafter on one device.

    memory: what was planned of a GPU's memory and what is used of it; None where nothing was planned.

    >>> engine = Engine.load(target="demo", draft="lookup")
    >>> result = engine.generate("def add(a, b):", SamplingParams(max_tokens=32))
    >>> result.text, result.stats.acceptance_length
    """

    def __init__(
        self,
        config: EngineConfig,
        target: LoadedTarget,
        drafter: Drafter,
        device: str,
        memory: MemoryPlan | None = None,
    ) -> None:
        self.config, self.target, self.drafter, self.device = config, target, drafter, device
        self.memory = memory
        self.kv = pick_kv(config.kv, device)
        self.last_statistics: Statistics | None = None
        self._plain = NoDrafter()
        self._runners: dict[str, Runner] = {}
        self._pool = None if device == "cpu" else torch.cuda.graph_pool_handle()
        self._rounds_memory: torch.cuda.CUDAGraph | None = None
        self._busy = False  # one drafter and its cache serve one stream at a time

    @classmethod
    def load(
        cls, target: str, draft: str | None = None, progress: Callable[[str], None] | None = None, **options: Any
    ) -> Engine:
        """Load a target and, if given, a draft; `options` are the other fields of `EngineConfig`.

        progress: told what is done after the files are read, where that may take a while.
        Raises UsageError for a wrong argument, FileError (or a kind of it) for a file that cannot be used,
        DownloadError when a named model cannot be fetched, DeviceError where what is asked for does not fit.
        """
        if options.get("max_context") == "auto":
            options["max_context"] = AUTO_CONTEXT
        try:
            config = EngineConfig(str(target), None if draft is None else str(draft), **options)
        except TypeError:
            known = [name for name in EngineConfig.__dataclass_fields__ if name not in ("target", "draft")]
            unknown = sorted(set(options) - set(known))
            raise UsageError(f"unknown option {', '.join(unknown)[:60]}; the options are {', '.join(known)}.") from None
        device = pick_device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        source = open_target(config.target)
        if config.assume_acceptance is not None:
            check_assumable(source, device)
        config, memory = prepare(config, source, device)
        if memory is not None:
            memory.set_aside()
        elif device != "cpu":
            lift_cap()
        loaded = load_target(config, device, source)
        if memory is None:
            config = settle(config, source, device)
        engine = cls(config, loaded, load_drafter(config, loaded.model, device), device, memory)
        if device != "cpu" and progress is not None:
            progress(f"compiling kernels for {kv_label(engine.kv)} caches")
        if device != "cpu" and memory is None:
            engine._compile()
        if engine.drafter.max_depth and config.assume_acceptance is None:
            _ = engine.policy  # measured now, so that the first request does not wait for it
        if memory is not None:
            engine._take_memory(memory)
        return engine

    def _take_memory(self, memory: MemoryPlan) -> None:
        """Allocate and compile what requests will use: the sequence, the rounds' graphs, a long prompt's scratch."""
        if self.sequence is None or self._pool is None:
            self._compile()
            return
        self._rounds_memory = memory.set_aside_rounds(self._pool)
        drafter = self.drafter if self.drafter.on_device else self._plain
        shapes = [ROOT_ONLY]
        if drafter.max_depth:  # an assumed acceptance is of shapes that requests name
            shapes = [arm.shape for arm in self.policy.arms] if self.config.assume_acceptance is None else []
        runner = self._runner(drafter, SamplingParams())
        if runner is not None:
            warm_up(runner, shapes)

    def _compile(self) -> None:
        """A few plain tokens, so that a GPU has the kernels of prompts and rounds before the first request."""
        self.generate([0], SamplingParams(max_tokens=_COMPILED_TOKENS, ignore_eos=True), "ar")
        self.last_statistics = None

    @property
    def synthetic(self) -> bool:
        """Whether the target's weights are made up, so that its text means nothing."""
        return self.target.source.synthetic

    @property
    def tokenizer(self) -> Any:
        """The target's tokenizer, None for a file without one."""
        return self.target.tokenizer

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        method: str = "auto",
        budget: int | None = None,
        draft_temperature: float = 1.0,
        chain_seed: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> GenerationResult:
        """Generate after a text or a list of token ids; see `stream` for the arguments."""
        result = None
        for event in self.stream(prompt, params, method, budget, draft_temperature, chain_seed, progress):
            result = event.result
        if result is None:
            raise RuntimeError("the stream ended without a result")
        return result

    def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        method: str = "auto",
        budget: int | None = None,
        draft_temperature: float = 1.0,
        chain_seed: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Generator[GenerationEvent, None, None]:
        """Yield an event after the prefill and after every round; the last one carries the result.

        method: "auto", "ar" (plain), "chain" or "tree"; none of them changes a token. budget: candidates a round,
        1..63. draft_temperature, chain_seed: how a tree is grown (SPEC-dflash 3.2, 3.3); a seed left out is "half", or
        "full" where the acceptance is assumed. progress: told the prompt tokens read so far. Closing the generator
        early leaves the figures so far in `last_statistics`.
        """
        params = params or SamplingParams()
        check_method(method, budget)
        ids = self._prompt_ids(prompt)
        limit = min(params.max_tokens, self.config.max_context - len(ids))
        if chain_seed is None:
            chain_seed = "half" if self.config.assume_acceptance is None else "full"
        shaping = Shaping(budget, draft_temperature, chain_seed)
        return self._events(ids, params, limit, self._plan(method, shaping), progress)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Teacher-forced logits, float32 [len(ids), V]: row i follows ids[: i + 1]."""
        prompt = self._tensor(self._checked(ids))
        model, rows = self.target.model, []
        if self._busy:
            raise UsageError(_BUSY)
        sequence = self._empty_sequence(len(prompt))
        for first in range(0, len(prompt), PASS_TOKENS):
            part = prompt[first : first + PASS_TOKENS]
            positions = torch.arange(first, first + len(part), device=self.device)
            hidden = model.prefill(ForwardInput(part, positions, offsets=(0, len(part))), sequence).hidden
            rows += [model.logits(some).cpu() for some in hidden.split(MAX_ROWS)]
        return torch.cat(rows).numpy()

    def describe(self) -> dict[str, Any]:
        """What is loaded and how: file names, device, KV types, weight forms with their share of the GGUF bytes.

        On a GPU also the layout of weights, the token table's place and, where there is a plan, its bytes.
        """
        forms = sorted(self.target.weight_forms.items(), key=lambda item: -item[1])
        return {
            "target": _labelled(self.target.name, self.target.source.synthetic),
            "target_fingerprint": self.target.fingerprint,
            "architecture": self.target.model.spec.architecture,
            "draft": self.drafter.name
            if self.config.draft in (None, self.drafter.name)
            else f"{self.drafter.name}:{_labelled(Path(self.config.draft).name, self.drafter.synthetic)}",
            "draft_form": self.drafter.form,
            "device": self.device if self.device == "cpu" else torch.cuda.get_device_name(),
            "dtype": self.config.dtype,
            "weight_form": ", ".join(f"{form} {100 * share:.0f} %" for form, share in forms),
            "kv": kv_label(self.kv),
            "draft_kv": kv_label(pick_draft_kv(self.config.draft_kv, self.device)),
            "max_context": self.config.max_context,
            "threads": torch.get_num_threads(),
            **self._places(),
        }

    def _places(self) -> dict[str, Any]:
        """How weights lie on a GPU, and what was planned there."""
        if self.device == "cpu":
            return {}
        planned = {} if self.memory is None else {"planned_bytes": self.memory.planned_bytes}
        return {"weights": self.config.weights, "token_table": self.config.token_table, **planned}

    @cached_property
    def policy(self) -> AutoPolicy:
        """The choices of `auto`, from costs measured here; it keeps learning over the engine's requests."""
        arms = arms_for(self.drafter.max_depth, self._shape_of, AUTO_DEPTHS)
        return AutoPolicy(costs.measure(self.target.model, self.drafter, self.kv, arms), arms)

    def _shape_of(self, method: str, budget: int) -> TreeShape:
        return METHODS[method](Shaping(budget), self.drafter.block_size)

    def _events(
        self,
        ids: list[int],
        params: SamplingParams,
        limit: int,
        plan: Plan,
        progress: Callable[[int], None] | None,
    ) -> Generator[GenerationEvent, None, None]:
        if self._busy:
            raise UsageError(_BUSY)
        model, drafter = self.target.model, plan.drafter
        prompt = self._tensor(ids)
        runner = self._runner(drafter, params)
        if runner is None and plan.assumed is not None:
            raise UsageError(
                "an acceptance can be assumed in rounds captured on a GPU only, which dtype float32, some sampling "
                "options and unusual head widths rule out; change these or leave --assume-acceptance out."
            )
        sequence = self._empty_sequence(len(ids) + limit)
        recorder = StatisticsRecorder(plan.method, plan.budget, len(ids), drafter.block_size, assumed=plan.assumed)
        stops = set(params.stop_token_ids)
        if not params.ignore_eos and self.tokenizer is not None:
            stops |= self.tokenizer.stop_ids
        text = None if self.tokenizer is None else TextStream(self.tokenizer)
        emitted: list[int] = []
        pieces: list[str] = []
        prefill_seconds = decode_seconds = 0.0
        finish = "interrupted"

        def figures() -> Statistics:
            recorder.reason = plan.reason()
            return recorder.finish(len(emitted), prefill_seconds, decode_seconds)

        def event(tokens: list[int]) -> GenerationEvent:
            """Clip what a round decided to the limit and to the first stop token."""
            nonlocal finish
            tokens = tokens[: limit - len(emitted)]
            stop = next((i for i, token in enumerate(tokens) if token in stops), None)
            if stop is not None:
                tokens, finish = tokens[: stop + 1], "stop"
            elif len(emitted) + len(tokens) == limit:
                finish = "length"
            emitted.extend(tokens)
            piece = "" if text is None else text.push(tokens)
            if finish != "interrupted" and text is not None:
                piece += text.flush()
            pieces.append(piece)
            result = None
            if finish != "interrupted":
                self.last_statistics = figures()
                result = GenerationResult(list(emitted), "".join(pieces), finish, self.last_statistics)
            return GenerationEvent(tokens, piece, result)

        self._busy = True
        try:
            start = time.perf_counter()
            drafter.start(prompt)
            hidden = read_prompt(model, sequence, prompt, drafter.wants, drafter.observe, progress=progress)
            logits, place, no_path = model.logits(hidden), prompt.new_tensor([len(ids)]), prompt.new_empty(1, 0)
            decoder: Runner | Decoder
            if runner is None:
                sampler = Sampler(params, model.spec.vocab, self.device, prompt)
                pending = sampler.draw(logits, place, no_path).squeeze(0)
                decoder = Decoder(model, sequence, drafter, sampler, pending)
            else:
                runner.begin(params)
                pending = runner.rounds.draws.draw(logits, place, no_path).squeeze(0)
                runner.pending.copy_(pending)
                decoder = runner
            first = int(pending)
            prefill_seconds = time.perf_counter() - start
            yield event([first])
            while finish == "interrupted":
                start = time.perf_counter()
                arm = plan.choose()
                outcome = decoder.round(arm.shape)
                plan.learn(arm, outcome, time.perf_counter() - start)
                recorder.record_round(outcome.accepted, outcome.proposed_depth, outcome.nodes)
                decode_seconds += time.perf_counter() - start
                yield event(outcome.emitted)
        finally:
            self._busy = False
            self.last_statistics = figures()

    @cached_property
    def sequence(self) -> SequenceState | None:
        """On a GPU the states that all requests use, one after the other, as a plan has room for one sequence.

        None where a request has its own: on a CPU, and where a state cannot go back to its start.
        """
        if self.device == "cpu":
            return None
        with torch.inference_mode(False):  # it outlives the request that asks first
            sequence = self._new_sequence(self.config.max_context)
        return sequence if sequence.on_device else None

    def _empty_sequence(self, capacity: int) -> SequenceState:
        """For a request of so many tokens."""
        if self.sequence is None:
            return self._new_sequence(capacity)
        self.sequence.truncate(0)
        return self.sequence

    def captured(self, drafts: bool) -> Runner | None:
        """What runs greedy requests on the engine's own sequence, with its draft or without; None where rounds need the
        host."""
        return self._runner(self.drafter if drafts else self._plain, SamplingParams())

    def _runner(self, drafter: Drafter, params: SamplingParams) -> Runner | None:
        """Captured rounds with this drafter, where the device, the drafter and what the request asks for allow them."""
        if self.device == "cpu" or not drafter.on_device or not KeyedDraw.serves(params):
            return None
        if self.sequence is None:
            return None
        if drafter.name not in self._runners:
            mean = None if drafter is self._plain else self.config.assume_acceptance
            with torch.inference_mode(False):  # it outlives whoever asks first
                self._runners[drafter.name] = Runner(
                    self.target.model,
                    self.sequence,
                    drafter,
                    KeyedDraw(self.device),
                    None if mean is None else assumption(mean, self.device),
                    self._pool,
                )
        return self._runners[drafter.name]

    def _plan(self, method: str, shaping: Shaping) -> Plan:
        """Fixed: one shape for every round. Auto: the policy chooses before each round and learns after it."""
        if method == "auto" and self.drafter.max_depth == 0:
            method = "ar"
        mean = None if method == "ar" else self.config.assume_acceptance
        if method == "auto":
            if mean is not None:
                raise UsageError("an acceptance is assumed for one shape of tree; take --method chain, tree or ar.")
            policy = self.policy
            policy.begin()

            def learn(arm: Arm, outcome: RoundOutcome, seconds: float) -> None:
                policy.observe(arm, outcome.accepted, outcome.proposed_depth, outcome.nodes, outcome.expected, seconds)

            return Plan("auto", 0, self.drafter, policy.choose, learn, policy.reason)
        drafter = self._plain if method == "ar" else self.drafter
        if method != "ar" and drafter.max_depth == 0:
            raise UsageError(
                f"method {method!r} needs a draft; load the engine with draft='lookup' or a draft file, "
                "or use method 'ar'."
            )
        shape = METHODS[method](shaping, drafter.block_size)
        if mean is not None:
            check_assumed(mean, drafter, shape)
        arm = Arm(method, shape, 0)
        used = 0 if method == "ar" else shape.budget
        return Plan(method, used, drafter, lambda: arm, lambda *_: None, lambda: "", mean)

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str):
            return self._checked(prompt)
        if self.tokenizer is None:
            raise UsageError(f"{self.target.name} has no tokenizer; give the prompt as a list of token ids.")
        return self._checked(self.tokenizer.encode(prompt, special=True, add_bos=self.tokenizer.adds_bos))

    def _checked(self, ids: Sequence[int]) -> list[int]:
        """Ids inside the vocabulary, at least one, and room for an answer."""
        checked = [int(token) for token in ids]
        vocab, room = self.target.model.spec.vocab, self.config.max_context
        if not checked:
            raise UsageError("the prompt is empty; give at least one token.")
        wrong = next((token for token in checked if not 0 <= token < vocab), None)
        if wrong is not None:
            raise UsageError(
                f"the prompt holds token id {wrong}, but {self.target.name} has ids 0 to {vocab - 1}; "
                "was it made for another model?"
            )
        if len(checked) >= room:
            raise UsageError(
                f"the prompt has {len(checked)} tokens and the context holds {room} with the answer; "
                "shorten it or raise max_context (--max-ctx)."
            )
        return checked

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def _new_sequence(self, capacity: int) -> SequenceState:
        return self.target.model.new_sequence(self.kv, capacity)


@dataclass(frozen=True)
class Plan:
    """How the rounds of one request get their trees; `method`, `budget` and `assumed` are for the report."""

    method: str
    budget: int
    drafter: Drafter
    choose: Callable[[], Arm]
    learn: Callable[[Arm, RoundOutcome, float], None]
    reason: Callable[[], str]
    assumed: float | None = None


def _labelled(name: str, synthetic: bool) -> str:
    """A model's name, which says so where its weights are made up (DESIGN law 5)."""
    return f"{name} (synthetic)" if synthetic and known.SYNTHETIC not in name else name
