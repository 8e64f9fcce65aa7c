"""All stages at tiny size through the command line, and what it says when a stage or a recipe is wrong."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from draftwood.cli.main import main
from draftwood.engine.engine import Engine
from draftwood.training.corpus import Corpus, manifest
from draftwood.training.prompts.scripts import ANSWER, Script, write_scripts
from draftwood.training.recipe import load_recipe
from draftwood.training.run import spread_taps
from tests.conftest import VENDORED

RECIPE = f"""
target = "{VENDORED / "models" / "l-b.Q4_1.gguf"}"
name = "tiny"
[draft]
layers = 2
taps = [1, 2, 3]
block = 8
mask_token = 5
shortlist = 64
[text]
sequences = 8
capacity = 128
[fit]
row_tokens = 128
rows = 2
anchors = 16
steps = 12
weighting = "dpace"
strength = 0.5
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def test_text_to_draft_in_one_folder(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    draw = np.random.default_rng(0)
    scripts = [Script((*draw.integers(6, 500, 5).tolist(), ANSWER), "chat", f"source {i}", True, 40) for i in range(24)]
    write_scripts(out / "scripts.npz", scripts)
    assert main(["train", str(recipe), "--out", str(out), "--stages", "generate"]) == 0
    # A random model's text would not pass the filters.
    text = Corpus.load(next(out.glob("text-*.npz")))
    assert len(text) == 24 and (text.roles == 2).sum() > 24
    held = np.arange(24) < 4
    Corpus(**{**text.__dict__, "held_out": held}).save(out / "corpus.npz")
    (out / "manifest.json").write_text(json.dumps(manifest(text, {})))
    assert main(["train", str(recipe), "--out", str(out), "--stages", "fit,evaluate,export,card,agree"]) == 0
    card = (out / "tiny.md").read_text()
    assert "| untrained draft |" in card and manifest(text, {})["sha256"] in card and date.today().isoformat() in card
    assert (out / "tiny.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "control, untrained draft: tau" in printed and "tiny-Q8_0.gguf" in printed
    found = json.loads((out / "evaluation.json").read_text())
    assert found["sequences"] == 4 and len(found["controls"]) == 8
    engine = Engine.load(str(VENDORED / "models" / "l-b.Q4_1.gguf"), draft=str(out / "tiny-Q8_0.gguf"))
    assert engine.generate([9, 10, 11], method="chain").token_ids == engine.generate([9, 10, 11], method="ar").token_ids


def test_a_missing_stage_is_named(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "--out", str(tmp_path / "new"), "--stages", "fit"]) == 2
    assert "corpus.npz" in (said := capsys.readouterr().err) and "clean" in said


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["train", "no-such-recipe"], "smollm2"),
        (["train", "smollm2", "--stages", "cook"], "generate"),
        (["train", "smollm2", "--set", "fit.pace=3"], "rate"),
        (["train", "smollm2", "--set", 'fit.rate="fast"'], "fit.rate"),
        (["train", "smollm2", "--minutes", "-1"], "--minutes"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1


def test_committed_recipe_and_the_rule_of_the_taps() -> None:
    recipe = load_recipe("smollm2")
    assert recipe.draft.taps == spread_taps(30, 5) == (1, 8, 14, 20, 27)
    assert load_recipe("smollm2", ("fit.rate=1e-3",)).fit.rate == 1e-3
    assert load_recipe("smollm2", ("fit.rate=1e-3",)).sha256() != recipe.sha256()
