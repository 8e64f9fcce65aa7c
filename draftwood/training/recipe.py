"""A training recipe: one TOML file says everything that decides the result. Importing this does not import torch."""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from draftwood.errors import UsageError


@dataclass(frozen=True)
class DraftRecipe:
    """The draft. None takes the target's value. taps: target layers from 0; empty: the rule of SPEC-draft-training 4.

    windows: tokens a layer sees back, 0 for everything, one a layer; empty: everything. shortlist: tokens that it
    proposes from, the most frequent of the training text; 0 for the whole vocabulary.
    """

    layers: int = 5
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn: int | None = None
    taps: tuple[int, ...] = ()
    tap_count: int = 5
    block: int = 16
    mask_token: int = 0
    causal: bool = True
    windows: tuple[int, ...] = ()
    shortlist: int = 0


@dataclass(frozen=True)
class TextRecipe:
    """The text. scripts: how many are drawn. capacity: tokens of a sequence at most. sequences: played at once.

    cap: tokens of an answer. The rest: `generate.WritingRules`.
    """

    scripts: int = 60000
    capacity: int = 1024
    sequences: int = 1024
    cap: int = 640
    longest_prompt: int = 512
    greedy_share: float = 0.65
    user_cap: int = 160
    temperature: float = 0.75
    min_p: float = 0.05


@dataclass(frozen=True)
class FitRecipe:
    """The fit. row_tokens, rows, anchors: S, n and A of a step. weighting, strength: `loss.WEIGHTINGS`.

    optimiser: "adamw", or "muon" for the matrices and AdamW for the rest, at `rest_rate`. warm_up: steps. decay: last
    share of the run, in which the rate falls to 0. steps: length of the run, 0 where the clock alone decides.
    """

    row_tokens: int = 1024
    rows: int = 32
    anchors: int = 256
    weighting: str = "decay"
    strength: float = 7.0
    optimiser: str = "adamw"
    rate: float = 1.5e-3
    rest_rate: float = 1.5e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    warm_up: int = 100
    decay: float = 0.3
    steps: int = 0


@dataclass(frozen=True)
class Recipe:
    """target: what `draftwood run` takes. name: of the draft. seed: of everything that is drawn."""

    target: str
    name: str
    seed: int = 1
    draft: DraftRecipe = field(default_factory=DraftRecipe)
    text: TextRecipe = field(default_factory=TextRecipe)
    fit: FitRecipe = field(default_factory=FitRecipe)

    def sha256(self) -> str:
        """Hex digest over all values."""
        return hashlib.sha256(repr(dataclasses.asdict(self)).encode()).hexdigest()


def committed() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    folder = Path(str(resources.files("draftwood.training").joinpath("recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name_or_path: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """A recipe by file or by the name of a committed one, some values set anew as `section.key=value` (TOML).

    Raises UsageError for a file that cannot be read and for keys or values that a recipe does not have.
    """
    known = committed()
    path = known.get(name_or_path, Path(name_or_path))
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        for override in overrides:
            _merge(table, tomllib.loads(override))
    except FileNotFoundError:
        raise UsageError(
            f"there is no recipe {name_or_path!r:.80}; give a file, or one of {', '.join(known)}."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"recipe {name_or_path!r:.80} cannot be read: {error}.") from None
    recipe: Recipe = _build(Recipe, table, "")
    return recipe


def _merge(table: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            _merge(table[key], value)
        else:
            table[key] = value


_SECTIONS = {"draft": DraftRecipe, "text": TextRecipe, "fit": FitRecipe}


def _build(kind: type[Any], table: dict[str, Any], at: str) -> Any:
    known = {entry.name: entry for entry in dataclasses.fields(kind)}
    values = {}
    for key, value in table.items():
        if key not in known:
            raise UsageError(f"a recipe has no {at}{key}; known here are {', '.join(known)}.")
        if key in _SECTIONS and not at:
            if not isinstance(value, dict):
                raise UsageError(f"{key} in a recipe is a section, write [{key}].")
            values[key] = _build(_SECTIONS[key], value, f"{key}.")
            continue
        values[key] = _checked(value, str(known[key].type), at + key)
    missing = [
        name
        for name, entry in known.items()
        if name not in values and entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"the recipe lacks {', '.join(at + name for name in missing)}.")
    return kind(**values)


def _checked(value: Any, kind: str, at: str) -> Any:
    """The value as its field's type, given as it is written in the source."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if kind in ("int", "int | None") and whole:
        return value
    if kind == "float" and (whole or (isinstance(value, float) and value >= 0)):
        return float(value)
    if (kind == "bool" and isinstance(value, bool)) or (kind == "str" and isinstance(value, str)):
        return value
    if kind == "tuple[int, ...]" and isinstance(value, list) and all(isinstance(entry, int) for entry in value):
        return tuple(value)
    raise UsageError(f"{at} in the recipe is {value!r:.40}; a value of the kind {kind} was expected.")
