"""`draftwood train`: a draft for a target, from a recipe."""

from __future__ import annotations

import json
import math
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftwood.cli import options
from draftwood.errors import UsageError

if TYPE_CHECKING:
    from draftwood.training.generate import Deadline
    from draftwood.training.recipe import Recipe
    from draftwood.training.run import Place

RESERVE = 2
"""Minutes that evaluation, export and card take on a data-centre GPU, with room (70 s on an H100)."""

STAGES = ("scripts", "generate", "clean", "fit", "evaluate", "export", "agree", "card")


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where the run keeps its files; train/NAME if nothing is said."),
    ] = None,
    stages: Annotated[
        str, typer.Option("--stages", metavar="S,S,...", help=f"Which stages to run, of {', '.join(STAGES)}.")
    ] = ",".join(STAGES),
    minutes: Annotated[
        float,
        typer.Option("--minutes", metavar="N", help="How long generate and fit may take, each; no limit if 0."),
    ] = 0.0,
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline",
            metavar="N",
            help="End the whole command N minutes after its start: generate and fit stop early enough (fit with a "
            f"checkpoint to go on from) to leave {RESERVE} of them to evaluate and export; no deadline if 0.",
        ),
    ] = 0.0,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="FILE", help="Go on from a checkpoint of the run's folder, as last.pt."),
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value for one key of the recipe, as fit.rate=1e-3."),
    ] = None,
    matrix_type: Annotated[
        str, typer.Option("--matrix-type", metavar="TYPE", help="Block type of the exported draft's matrices.")
    ] = "Q8_0",
    device: options.DeviceOption = options.DeviceName.auto,
) -> None:
    """Train a draft for a target.

    The target writes the text itself, the draft learns to guess it, and what it guesses of held-out text is printed
    beside every control. Each stage starts from what the one before left in the folder.
    """
    chosen = [stage.strip() for stage in stages.split(",") if stage.strip()]
    unknown = [stage for stage in chosen if stage not in STAGES]
    if unknown or not chosen:
        raise UsageError(f"--stages is {stages!r:.60}; the stages are {', '.join(STAGES)}.")
    if minutes < 0:
        raise UsageError(f"--minutes is {minutes:g}; give a number of minutes, 0 for no limit.")
    if deadline and deadline <= RESERVE:
        raise UsageError(f"--deadline is {deadline:g}; give more than {RESERVE} minutes, or 0 for none.")
    from draftwood.engine.loader import pick_device
    from draftwood.training.generate import Deadline
    from draftwood.training.recipe import load_recipe
    from draftwood.training.run import Place

    over = Deadline(60 * (deadline - RESERVE) if deadline else math.inf)
    plan = load_recipe(recipe, tuple(values or ()))
    folder = out or Path("train") / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder, pick_device(device.value))
    print(f"{plan.name}: draft for {plan.target}, in {folder}, on {place.device}", flush=True)
    run_stages(plan, place, chosen, 60 * minutes or math.inf, over, resume, matrix_type)


def run_stages(
    recipe: Recipe,
    place: Place,
    chosen: list[str],
    seconds: float,
    over: Deadline,
    resume: str | None,
    matrix_type: str,
) -> None:
    """Run stages in their order; each prints what it did.

    seconds: for generate and fit, each. over: when they must end whatever happened before; generate leaves half of
    what is left to fit.
    """
    from draftwood.training import run
    from draftwood.training.generate import Deadline
    from draftwood.training.held_out import evaluate

    def tell(line: str) -> None:
        print(f"  {line}", flush=True)

    benchmark = benchmark_ids(recipe) if {"scripts", "clean"} & set(chosen) else []
    if "scripts" in chosen:
        print(f"scripts: {run.make_scripts(recipe, place, benchmark)} prompts drawn", flush=True)
    if "generate" in chosen:
        print("generate: the target writes", flush=True)
        share = 0.5 if "fit" in chosen else 1.0
        counts = run.generate(recipe, place, Deadline(min(seconds, share * over.left)), tell)
        print(f"generate: {counts['sequences']} sequences, {counts['answer_tokens']} answer tokens", flush=True)
    if "clean" in chosen:
        facts = run.clean_text(recipe, place, benchmark)
        print(f"clean: {json.dumps(facts['filters'])}", flush=True)
    if "fit" in chosen:
        print("fit: the draft learns", flush=True)
        run.fit(recipe, place, seconds, tell, resume, over)
    if "evaluate" in chosen or "export" in chosen:
        fitter, corpus, source = run.load_fitted(recipe, place)
        if "evaluate" in chosen:
            print("evaluate: rounds over held-out text", flush=True)
            place.write_json("evaluation.json", evaluate(recipe, fitter, corpus, tell))
        if "export" in chosen:
            path = place.folder / f"{recipe.name}-{matrix_type}.gguf"
            run.export(recipe, fitter, corpus, source, path, matrix_type)
            print(f"export: {path}, {path.stat().st_size / 2**20:.1f} MiB", flush=True)
    if "agree" in chosen:
        run.agree(recipe, place, place.file(f"{recipe.name}-{matrix_type}.gguf"), tell)
    if "card" in chosen:
        print(f"card: {run.write_card(recipe, place, conditions(place.device))}", flush=True)


def conditions(device: str) -> dict[str, str]:
    """What a card says of the day and the machine."""
    import torch

    from draftwood.bench.report import commit

    return {
        "date": date.today().isoformat(),
        "hardware": f"{'CPU' if device == 'cpu' else torch.cuda.get_device_name()}, torch {torch.__version__}",
        "draftwood": commit(),
    }


def benchmark_ids(recipe: Recipe) -> list[list[int]]:
    """Every text that draftwood's benchmarks use, as the target's ids."""
    from draftwood.bench.prompts import chat, editing, humaneval
    from draftwood.engine.fetch import resolve
    from draftwood.training.run import open_tokenizer

    tokenizer = open_tokenizer(recipe)
    texts = [prompt.text for prompt in chat.PROMPTS]
    texts.append(editing.REQUEST)
    texts += humaneval.all_texts(resolve("humaneval"))
    return [tokenizer.encode(text, special=False) for text in texts]
