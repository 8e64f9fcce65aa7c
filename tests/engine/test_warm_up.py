"""What is run when an engine is loaded, on a CPU with rounds that are only noted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from draftwood import Engine
from draftwood.cache.registry import kv_pair
from draftwood.decode.drafters.none import NoDrafter
from draftwood.decode.policy import arms_for
from draftwood.decode.tree import ROOT_ONLY, TreeShape
from draftwood.engine import engine as engine_module
from draftwood.engine import warm_up as module
from draftwood.planner import hardware

TINY = "synthetic:qwen3.6-27b-tiny"
DRAFT = f"{TINY}-dflash:q8_0"
KINDS: dict[str, Any] = {"chain": "chain", "tree": "best_first"}
SHAPES = [ROOT_ONLY, TreeShape("chain", 3), TreeShape("best_first", 31), TreeShape("chain", 15)]


class NotingDrafter(NoDrafter):
    """Notes how many rows it is shown."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def observe(self, tokens: Any, features: Any) -> None:
        self.seen.append(len(tokens))


class Draws:
    """Serves every request, with nothing on a device."""

    def __init__(self, device: str) -> None:
        self.device = device

    @staticmethod
    def serves(params: Any) -> bool:
        return True


def test_the_plan_has_room_for_every_graph_of_auto() -> None:
    """What is captured depends on how far a draft looks ahead; from 15 guesses on there are no more shapes."""

    def captured(max_depth: int) -> int:
        shapes = {
            arm.shape
            for arm in arms_for(
                max_depth, lambda kind, budget: TreeShape(KINDS[kind], budget), engine_module.AUTO_DEPTHS
            )
        }
        return len(shapes)

    assert captured(15) * hardware.GRAPH == hardware.GRAPHS
    assert max(map(captured, range(64))) == captured(15) and captured(0) == 1


@pytest.mark.parametrize(
    ("capacity", "segment", "start", "count"),
    [
        (4096, 8192, 2048, 2048),
        (4096, 128, 128, 2048),
        (4096, 100, 128, 2048),
        (128, 128, 0, 128),
        (2112, 256, 64, 2048),
    ],
)
def test_the_widest_round_comes_first_and_the_longest_pass_last(
    vendored: Path, monkeypatch: pytest.MonkeyPatch, capacity: int, segment: int, start: int, count: int
) -> None:
    model = Engine.load(str(vendored / "models" / "l-b.Q4_1.gguf"), dtype="float32").target.model
    monkeypatch.setattr(module, "segment_rows", lambda *arguments: segment)
    sequence, drafter = model.new_sequence(kv_pair("f32"), capacity), NotingDrafter()
    noted: list[tuple[str, int]] = []
    starts: list[int] = []
    skip = sequence.skip
    monkeypatch.setattr(sequence, "skip", lambda count: (starts.append(count), skip(count)))
    runner = SimpleNamespace(
        sequence=sequence,
        drafter=drafter,
        rounds=SimpleNamespace(target=model, draws=SimpleNamespace(draw=lambda logits, *_: logits.argmax(1))),
        pending=torch.zeros((), dtype=torch.int64),
        begin=lambda params: None,
        round=lambda shape: noted.append(("round", shape.budget)),
        captured=lambda shape: noted.append(("captured", shape.budget)),
    )
    module.warm_up(runner, SHAPES)  # type: ignore[arg-type]
    budgets = (31, 15, 3, ROOT_ONLY.budget)
    assert noted == [(what, budget) for budget in budgets for what in ("round", "captured")]
    passes = [0, start] if start else [0]
    assert drafter.seen == [1, 1, 1, 1, *[count] * len(passes)] and starts == [0, 0, 0, 0, *passes]
    assert sequence.length == 0 == int(sequence.committed)


@pytest.mark.parametrize(
    ("draft", "assumed", "drafter", "shapes"),
    [
        (None, None, "none", ["root_only"]),
        ("lookup", None, "none", ["root_only"]),
        (DRAFT, 3.5, "dflash", []),
        (DRAFT, None, "dflash", ["root_only", *["chain"] * 4, *["best_first"] * 3]),
    ],
)
def test_what_is_warmed_up(
    monkeypatch: pytest.MonkeyPatch, draft: str | None, assumed: float | None, drafter: str, shapes: list[str]
) -> None:
    """Rounds that `auto` may take; where a request names its shape, prompts alone."""
    engine = Engine.load(TINY, draft=draft, max_context=64, device="cpu")
    engine.config = replace(engine.config, assume_acceptance=assumed)
    if drafter == "dflash":
        monkeypatch.setattr(type(engine.drafter), "on_device", True)
    warmed: list[Any] = []
    monkeypatch.setattr(engine, "sequence", object())
    monkeypatch.setattr(engine, "_pool", (0, 1))
    monkeypatch.setattr(engine, "_runner", lambda drafter, params: drafter.name)
    monkeypatch.setattr(engine_module, "warm_up", lambda runner, shapes: warmed.append((runner, shapes)))
    engine._take_memory(SimpleNamespace(set_aside_rounds=lambda pool: pool))  # type: ignore[arg-type]
    assert engine._rounds_memory == (0, 1)
    [(runner, found)] = warmed
    assert runner == drafter and sorted(shape.kind for shape in found) == sorted(shapes)


def test_a_runner_serves_requests_outside_the_mode_that_it_was_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch lets nobody write to a tensor that was made in inference mode from outside of it."""
    engine = Engine.load(TINY, max_context=64, device="cpu")
    made: list[bool] = []
    monkeypatch.setattr(engine, "device", "cuda")
    monkeypatch.setattr(engine, "sequence", object())
    monkeypatch.setattr(type(engine._plain), "on_device", True)
    monkeypatch.setattr(engine_module, "KeyedDraw", Draws)
    monkeypatch.setattr(engine_module, "Runner", lambda *arguments: made.append(torch.is_inference_mode_enabled()))
    with torch.inference_mode():
        engine.captured(False)
    assert made == [False]
