"""The stages of a training run, each from what the one before left in the run's folder.

scripts.npz                 what the target will be asked to write
text-FIRST-END.npz          what it wrote, one file a stretch of generation: scripts FIRST to END
corpus.npz, manifest.json   the text after the filters, and its counts
last.pt, flat.pt            checkpoints
curve.json, evaluation.json, agreement.json, <name>.gguf
<name>.md, <name>.png       the model card and the curves
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from draftwood.engine.fetch import resolve
from draftwood.errors import DraftMismatchError, UsageError
from draftwood.formats.gguf import GGUFFile
from draftwood.models.registry import architecture
from draftwood.text.tokenizer import Tokenizer
from draftwood.training import agreement
from draftwood.training.corpus import Corpus, CorpusWriter, clean, manifest
from draftwood.training.draft_net import DraftShape
from draftwood.training.export import DraftFacts, write_gguf
from draftwood.training.fit import Fitter, Point
from draftwood.training.generate import Player, WritingRules, play
from draftwood.training.held_out import shortlist
from draftwood.training.overlap import RunIndex
from draftwood.training.packing import Document, pack
from draftwood.training.prompts import build_scripts
from draftwood.training.prompts.scripts import Script, read_scripts, write_scripts
from draftwood.training.recipe import Recipe
from draftwood.training.report import card, draw_curves
from draftwood.training.roles import SUPERVISED
from draftwood.training.teachers import open_teacher

Tell = Callable[[str], None]


_MADE_BY = {
    "scripts.npz": "scripts",
    "corpus.npz": "clean",
    "manifest.json": "clean",
    "last.pt": "fit",
    "curve.json": "fit",
    "evaluation.json": "evaluate",
    "agreement.json": "agree",
}
"""The stage that leaves a file."""


@dataclass(frozen=True)
class Place:
    """Where a run keeps its files, and on which device it runs."""

    folder: Path
    device: str

    def file(self, name: str) -> Path:
        """A file of the run; a UsageError names the stage that makes it where it is missing."""
        path = self.folder / name
        if not path.exists():
            stage = _MADE_BY.get(name, "an earlier one")
            raise UsageError(f"{self.folder} has no {name} yet; run the stage that makes it first ({stage}).")
        return path

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote."""
        return json.loads(self.file(name).read_text(encoding="utf-8"))

    def write_json(self, name: str, value: Any) -> None:
        """A JSON file of the run."""
        (self.folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def open_target(recipe: Recipe) -> GGUFFile:
    """The target's file."""
    return GGUFFile.open(resolve(recipe.target))


def open_tokenizer(recipe: Recipe) -> Tokenizer:
    """The target's tokenizer."""
    return Tokenizer.from_metadata(open_target(recipe).metadata)


def draft_shape(recipe: Recipe, source: GGUFFile) -> DraftShape:
    """The recipe's draft for this target."""
    spec, draft = architecture(source).read_spec(source), recipe.draft
    taps = draft.taps or spread_taps(spec.layers, draft.tap_count)
    if not all(0 <= tap < spec.layers for tap in taps):
        raise UsageError(f"draft.taps of the recipe are {list(taps)}; the target has layers 0 to {spec.layers - 1}.")
    windows = draft.windows or (0,) * draft.layers
    if len(windows) != draft.layers:
        raise UsageError(f"draft.windows of the recipe has {len(windows)} entries for {draft.layers} layers.")
    return DraftShape(
        layers=draft.layers,
        hidden=spec.hidden,
        ffn=draft.ffn or spec.ffn,
        heads=draft.heads or spec.heads,
        kv_heads=draft.kv_heads or spec.kv_heads,
        head_dim=draft.head_dim or spec.head_dim,
        eps=1e-6,
        rope_base=spec.rope_base,
        block=draft.block,
        mask_token=draft.mask_token,
        taps=taps,
        causal=draft.causal,
        windows=tuple(window or None for window in windows),
    )


def spread_taps(layers: int, count: int) -> tuple[int, ...]:
    """The published rule for the tapped layers (SPEC-draft-training section 4)."""
    return tuple(round(1 + k * (layers - 4) / (count - 1)) for k in range(count)) if count > 1 else (layers // 2,)


def make_scripts(recipe: Recipe, place: Place, benchmark: Iterable[Sequence[int]]) -> int:
    """Stage `scripts`: draw what the target will be asked to write; how many.

    benchmark: texts as ids that no script may share a run of tokens with.
    """
    tokenizer, text = open_tokenizer(recipe), recipe.text
    if tokenizer.chat_template is None:
        raise UsageError("the target has no chat template, so it cannot be asked to write a chat.")
    scripts = build_scripts(
        tokenizer,
        tokenizer.chat_template,
        recipe.seed,
        text.scripts,
        text.cap,
        text.longest_prompt,
        text.greedy_share,
        benchmark=RunIndex(benchmark),
    )
    write_scripts(place.folder / "scripts.npz", scripts)
    return len(scripts)


def generate(recipe: Recipe, place: Place, stop: Callable[[], bool], tell: Tell) -> dict[str, float]:
    """Stage `generate`: let the target write until `stop()` says so or all scripts are played; the counts.

    A stretch goes on with the script behind the last one that an earlier stretch began.
    """
    first = max((int(path.stem.rpartition("-")[2]) for path in place.folder.glob("text-*.npz")), default=0)
    tokenizer, text = open_tokenizer(recipe), recipe.text
    teacher = open_teacher(open_target(recipe), place.device)
    rules = WritingRules(
        tuple(sorted(tokenizer.stop_ids)),
        tokenizer.eos_id if tokenizer.eos_id is not None else min(tokenizer.stop_ids),
        text.user_cap,
        text.temperature,
        text.min_p,
    )
    scripts = read_scripts(place.file("scripts.npz"))[first:]
    if not scripts:
        raise UsageError(f"all {first} scripts of {place.folder} are played; delete its text-*.npz to begin anew.")
    torch.manual_seed(recipe.seed + first)
    longest = max(len(script.tokens) for script in scripts)
    player = Player(teacher, text.sequences, text.capacity, rules, longest)
    if place.device == "cuda":
        player.capture()
    writer = CorpusWriter(teacher.spec.vocab)
    begun = told = time.monotonic()
    answers = played = steps = taken = 0

    def count_steps(now: int) -> None:
        nonlocal steps
        steps = now

    def count_scripts() -> Iterator[Script]:
        nonlocal taken
        for script in scripts:
            taken += 1
            yield script

    for written in play(player, count_scripts(), stop, count_steps):
        writer.add(written.script, written.tokens, written.roles)
        answers += int((written.roles == SUPERVISED).sum())
        played += 1
        if time.monotonic() - told > 10:
            told = time.monotonic()
            pace = steps * text.sequences / (told - begun)
            tell(f"{told - begun:.0f} s: {played} sequences, {answers / 1e6:.2f} M answer tokens, {pace:.0f} tokens/s")
    took = time.monotonic() - begun
    writer.corpus().save(place.folder / f"text-{first:06d}-{first + taken:06d}.npz")
    return {"sequences": played, "answer_tokens": answers, "seconds": took, "steps": steps}


def clean_text(recipe: Recipe, place: Place, benchmark: Iterable[Sequence[int]]) -> dict[str, Any]:
    """Stage `clean`: all text through the filters; benchmark: texts as ids that must not be learnt. The manifest."""
    files = sorted(place.folder.glob("text-*.npz"))
    if not files:
        raise UsageError(f"{place.folder} has no text yet; run the stage that makes it first (generate).")
    raw = Corpus.concat([Corpus.load(path) for path in files])
    corpus, counts = clean(raw, RunIndex(benchmark), open_tokenizer(recipe).stop_ids, recipe.seed)
    corpus.save(place.folder / "corpus.npz")
    facts: dict[str, Any] = manifest(corpus, counts)
    place.write_json("manifest.json", facts)
    return facts


def _open_fitter(recipe: Recipe, place: Place, source: GGUFFile, documents: Iterable[Document]) -> Fitter:
    """A fresh draft that is to learn from the documents."""
    teacher, fit = open_teacher(source, place.device), recipe.fit
    rows = pack(documents, fit.row_tokens)
    return Fitter(teacher, draft_shape(recipe, source), fit, rows, recipe.seed, compiled=place.device == "cuda")


def _checkpoint(place: Place, name: str) -> dict[str, Any]:
    """What a fitter saved in the run's folder."""
    state: dict[str, Any] = torch.load(place.file(name), weights_only=True, map_location=place.device)
    return state


def fit(
    recipe: Recipe,
    place: Place,
    seconds: float,
    tell: Tell,
    resume: str | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Fitter:
    """Stage `fit`: train on the text that is not held out, for some seconds (of all runs of this fit together).

    stop: ends this run earlier, with its checkpoint. resume: a checkpoint of the folder; from `flat.pt` the
    schedule's clock starts anew.
    """
    corpus = Corpus.load(place.file("corpus.npz"))
    learnt = (corpus.sequence(int(index)) for index in np.flatnonzero(~corpus.held_out))
    fitter = _open_fitter(recipe, place, open_target(recipe), learnt)
    if resume is not None:
        fitter.resume(_checkpoint(place, resume), fresh_clock=resume == "flat.pt")

    def show(point: Point) -> None:
        if point.step % 100 == 0:
            tell(
                f"step {point.step} at {point.seconds:.0f} s: loss {point.loss:.3f}, first slot "
                f"{100 * point.first_slot:.0f} %, tau {point.tau_anchor:.2f}, {point.anchors_per_second:.0f} anchors/s"
            )

    fitter.run(seconds, place.folder, show, stop=stop)
    place.write_json("curve.json", [asdict(point) for point in fitter.curve])
    return fitter


def load_fitted(recipe: Recipe, place: Place) -> tuple[Fitter, Corpus, GGUFFile]:
    """A fitter as `fit` left it, for judging or export."""
    source, corpus = open_target(recipe), Corpus.load(place.file("corpus.npz"))
    fitter = _open_fitter(recipe, place, source, [corpus.sequence(0)])
    fitter.resume(_checkpoint(place, "last.pt"))
    return fitter, corpus, source


def export(recipe: Recipe, fitter: Fitter, corpus: Corpus, source: GGUFFile, path: Path, matrix_type: str) -> None:
    """Stage `export`: the draft as a GGUF."""
    context_length = int(source.require(f"{source.architecture}.context_length"))
    facts = DraftFacts(recipe.name, fitter.net.shape, context_length, shortlist(corpus, recipe.draft.shortlist))
    tensors = {name: value.float().cpu().numpy() for name, value in fitter.net.state_dict().items()}
    write_gguf(path, tensors, facts, source, matrix_type)


def agree(recipe: Recipe, place: Place, draft: Path, tell: Tell) -> dict[str, float]:
    """Stage `agree`: the exported draft in the engine and in the training code; see `agreement.agree`.

    A DraftMismatchError where they differ by more than `LARGEST_DIFFERENCE`.
    """
    source, corpus = open_target(recipe), Corpus.load(place.file("corpus.npz"))
    found = agreement.agree(recipe, draft_shape(recipe, source), corpus, source, draft, place.device, tell)
    if abs(agreement.difference(found)) > agreement.LARGEST_DIFFERENCE:
        raise DraftMismatchError(
            f"the engine accepts {found['engine']:.2f} tokens a round of {draft.name}, the training code "
            f"{found['training']:.2f}; at most {agreement.LARGEST_DIFFERENCE:.0%} of difference was expected, so taps, "
            "mask or positions differ between them."
        )
    place.write_json("agreement.json", found)
    return found


def write_card(recipe: Recipe, place: Place, conditions: Mapping[str, Any]) -> Path:
    """Stage `card`: the model card and the curves beside it; the card. conditions: see `report.card`."""
    points = [Point(**point) for point in place.read_json("curve.json")]
    evaluation, found = place.read_json("evaluation.json"), place.read_json("agreement.json")
    path = place.folder / f"{recipe.name}.md"
    text = card(recipe, place.read_json("manifest.json"), points, evaluation, found, conditions)
    draw_curves(points, evaluation, path.with_suffix(".png"))
    path.write_text(text, encoding="utf-8")
    return path
