"""Fitting: four sequences learnt by heart, and a killed run that goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from draftwood.training.evaluate import controls, judge, look_up
from draftwood.training.fit import Fitter, Point
from draftwood.training.packing import Document, pack
from draftwood.training.recipe import FitRecipe
from draftwood.training.teachers.base import Teacher
from tests.training.small import SHAPE, document, teacher

RECIPE = FitRecipe(row_tokens=128, rows=2, anchors=32, rate=4e-3, rest_rate=4e-3, warm_up=10, steps=20)


@pytest.fixture(scope="module")
def taught() -> Teacher:
    return teacher()


def fitter(taught: Teacher, documents: list[Document], **changes: object) -> Fitter:
    recipe = dataclasses.replace(RECIPE, **changes)  # type: ignore[arg-type]
    return Fitter(taught, SHAPE, recipe, pack(documents, 128), seed=1, compiled=False)


def test_four_sequences_are_learnt_by_heart_and_every_control_falls(taught: Teacher) -> None:
    documents = [document(60, (12, 60), seed) for seed in range(4)]
    fit = fitter(taught, documents, steps=240)

    def tau(**control: object) -> float:
        judged = judge(fit.replay, taught.head, documents, 128, 4, **control)  # type: ignore[arg-type]
        return judged.tau_chain()

    assert tau() < 1.1, "an untrained draft"
    fit.run(float("inf"))
    assert fit.curve[-1].loss < 0.1
    trained = tau()
    assert trained > 6, "a block of eight rows decides at most eight tokens a round"
    for name, control in controls(fit.net).items():
        # Neighbouring layers of a tiny random target are nearly the same, so only blindness must hurt here.
        limit = 2.5 if name == "context features zeroed" else trained
        assert tau(control=control) <= limit, name
    assert look_up(documents, 128, 8).tau_chain() == 1.0


@pytest.mark.parametrize("optimiser", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_on_the_same_curve(taught: Teacher, tmp_path: Path, optimiser: str) -> None:
    documents = [document(length, (12, length), length) for length in (60, 50, 90, 100, 40, 77, 120)]

    def run(stop_after: int | None, state: dict[str, object] | None) -> Fitter:
        fit = fitter(taught, documents, steps=44, optimiser=optimiser)
        if state is not None:
            fit.resume(state)
        fit.run(float("inf"), tmp_path, stop_after=stop_after)
        return fit

    whole = run(None, None)
    killed = run(27, None)
    state = killed.state()
    torch.save(state, tmp_path / "state.pt")
    resumed = run(None, torch.load(tmp_path / "state.pt", weights_only=True))

    def values(points: list[Point]) -> list[tuple[int, float, float]]:
        return [(point.step, point.loss, point.tau_anchor) for point in points]

    assert values(resumed.curve) == values(whole.curve)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name]), name
    assert (tmp_path / "flat.pt").exists() and (tmp_path / "last.pt").exists()


def test_every_row_is_seen_once_an_epoch(taught: Teacher) -> None:
    fit = fitter(taught, [document(100, (10, 100), seed) for seed in range(5)])
    seen = [tuple(row[:8]) for step in range(5) for row in fit.batch(step).tokens.tolist()]
    assert len(set(seen[:5])) == 5 and len(set(seen[5:])) == 5 and seen[:5] != seen[5:]


def test_look_up_copies_what_followed_the_same_two_tokens() -> None:
    ids = np.array([1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 5, 7, 8])
    roles = np.where(np.arange(13) >= 6, 2, 0).astype(np.uint8)
    judged = look_up([(ids, roles)], 64, 8)
    # At the second 2 the pair (1, 2) has been seen: 3 4 5 follow, then it errs. The last token is no anchor.
    assert judged.leading[0].tolist() == [-1] * 6 + [0, 3, 2, 1, 0, 0, -1]
