"""What is run when an engine is loaded, on a CPU with rounds that are only noted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from draftwood import Engine
from draftwood.cache.registry import kv_pair
from draftwood.decode.drafters.none import NoDrafter
from draftwood.decode.tree import ROOT_ONLY, TreeShape
from draftwood.engine import warm_up as module

SHAPES = [ROOT_ONLY, TreeShape("chain", 3), TreeShape("best_first", 31), TreeShape("chain", 15)]


class NotingDrafter(NoDrafter):
    """Notes how many rows it is shown."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def observe(self, tokens: Any, features: Any) -> None:
        self.seen.append(len(tokens))


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
    assert drafter.seen == [1, 1, 1, 1, count] and starts == [0, 0, 0, 0, start]
    assert sequence.length == 0 == int(sequence.committed)
