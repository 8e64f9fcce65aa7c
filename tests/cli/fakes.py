"""A stand-in for the engine at its public seam: torch-free, instant, and wrong on demand."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from draftwood.decode.params import SamplingParams
from draftwood.decode.stats import Statistics
from draftwood.engine.request import GenerationEvent, GenerationResult


class FakeTemplate:
    """Marks the turns with angle brackets."""

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        turns = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        return turns + ("<assistant>" if add_generation_prompt else "")


class FakeTokenizer:
    """One token a UTF-8 byte."""

    def __init__(self, chat_template: FakeTemplate | None) -> None:
        self.chat_template = chat_template

    def encode(self, text: str, special: bool, add_bos: bool = False) -> list[int]:
        return list(text.encode())


class FakeDrafter:
    """A draft with one fact."""

    def facts(self) -> dict[str, str]:
        return {"mask token": "7"}


@dataclass
class Behaviour:
    """What a fake engine does; `wrong` names methods whose tokens differ, `calls` fills as it is used."""

    wrong: tuple[str, ...] = ()
    repetitive: bool = False
    interrupt_after: int | None = None
    seconds_a_token: float = 0.0
    has_template: bool = True
    failure: Exception | None = None
    loads: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)


class FakeEngine:
    """Answers any prompt with letters that depend on the prompt's length alone."""

    behaviour = Behaviour()
    synthetic = False
    memory = None

    def __init__(self, target: str, draft: str | None) -> None:
        self.target, self.draft = target, draft
        self.tokenizer = FakeTokenizer(FakeTemplate() if self.behaviour.has_template else None)
        self.last_statistics: Statistics | None = None
        self.drafter = FakeDrafter()

    @classmethod
    def load(
        cls, target: str, draft: str | None = None, progress: Callable[[str], None] | None = None, **options: Any
    ) -> FakeEngine:
        if progress is not None:
            progress("compiling kernels")
        cls.behaviour.loads.append({"target": target, "draft": draft, **options})
        if cls.behaviour.failure is not None:
            raise cls.behaviour.failure
        return cls(target, draft)

    def describe(self) -> dict[str, Any]:
        return {
            "target": Path(self.target).name,
            "architecture": "fake",
            "draft": self.draft,
            "device": "cpu",
            "dtype": "float32",
            "weight_form": "none",
            "kv": "f32",
            "max_context": 64,
            "threads": 1,
        }

    def generate(self, prompt: Any, params: SamplingParams, **options: Any) -> GenerationResult:
        result = None
        for event in self.stream(prompt, params, **options):
            result = event.result
        assert result is not None
        return result

    def stream(
        self,
        prompt: Any,
        params: SamplingParams,
        method: str = "auto",
        budget: int | None = None,
        **options: Any,
    ) -> Iterator[GenerationEvent]:
        behaviour = self.behaviour
        behaviour.requests.append({"prompt": prompt, "params": params, "method": method, "budget": budget, **options})
        shift = 1 if method in behaviour.wrong else 0
        start = len(prompt)
        emitted: list[int] = []

        def statistics() -> Statistics:
            depths = () if method == "ar" else (0.5,)
            used = 0 if method == "ar" else budget or 7
            rounds = max(len(emitted) - 1, 0)
            return Statistics(method, used, len(prompt), len(emitted), rounds, 0.5, 2.0, depths)

        try:
            for index in range(params.max_tokens):
                if index == behaviour.interrupt_after:
                    raise KeyboardInterrupt
                time.sleep(behaviour.seconds_a_token)
                letter = 0 if behaviour.repetitive else (start + index + shift) % 26
                emitted.append(97 + letter)
                last = index == params.max_tokens - 1
                text = bytes(emitted).decode()
                result = GenerationResult(list(emitted), text, "length", statistics()) if last else None
                yield GenerationEvent([emitted[-1]], text[-1], result)
        finally:
            self.last_statistics = statistics()


def fake_module() -> ModuleType:
    """A module to stand in `sys.modules` for the engine's."""
    module = ModuleType("draftwood.engine.engine")
    module.Engine = FakeEngine  # type: ignore[attr-defined]
    return module


if __name__ == "__main__":
    # The `draftwood` command on a slow fake engine, for tests that need a process of its own.
    sys.modules["draftwood.engine.engine"] = fake_module()
    FakeEngine.behaviour = Behaviour(seconds_a_token=0.02)
    from draftwood.cli.main import run

    run()
