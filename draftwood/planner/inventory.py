"""The models that a plan is made for: read from their files, or known by name without them. Torch-free."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from draftwood.buffers import BufferSpec, total
from draftwood.errors import UsageError
from draftwood.formats.gguf import GGUFFile
from draftwood.formats.header import ModelHeader
from draftwood.formats.source import TensorInfo
from draftwood.kernels.layouts import WEIGHTS
from draftwood.models import known
from draftwood.models.buffers import (
    HEAD,
    TABLE,
    draft_weight_buffers,
    loaded,
    state_buffers,
    weight_buffers,
)
from draftwood.models.draft_spec import DraftSpec, check_window, fit, overriding, read_spec
from draftwood.models.draft_tensors import DraftHeader, draft_tensors, open_source
from draftwood.models.registry import architecture
from draftwood.models.spec import ModelSpec

COARSE_BITS = 7.0
"""Drafts whose matrices take fewer bits than this a weight guess worse (`acceptance.COARSE`)."""


@dataclass(frozen=True)
class Advice:
    """What an earlier report says of `least` to `most` tokens: pairs of KV type and draft quantisation.

    use: what such contexts are for. pairs: what it advises. refused: what it says does not fit.
    """

    least: int
    most: int
    use: str
    pairs: tuple[tuple[str, str], ...]
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Target:
    """A target: what to call it, its facts and its tensors. key: its name in `models.known`, None for a file."""

    name: str
    about: str
    spec: ModelSpec
    tensors: tuple[TensorInfo, ...]
    key: str | None = None

    @cached_property
    def buffers(self) -> dict[str, list[BufferSpec]]:
        """The weights by layout, without the table that tokens are looked up in."""
        return {layout: weight_buffers(self.tensors, layout, self.spec.layers) for layout in WEIGHTS}

    @cached_property
    def layout_bytes(self) -> dict[str, int]:
        """Bytes of these weights by layout."""
        return {layout: total(buffers) for layout, buffers in self.buffers.items()}

    @cached_property
    def file_bytes(self) -> int:
        """Bytes of the same weights in the file."""
        return stored_bytes(loaded(self.tensors, self.spec.layers))

    @cached_property
    def matrices(self) -> list[TensorInfo]:
        """What a pass multiplies with, the head included."""
        return [info for info in loaded(self.tensors, self.spec.layers) if len(info.shape) == 2]

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent states, in float32, without the convolutions' windows."""
        return total(buffer for buffer in state_buffers(self.spec) if buffer.name == "state")

    @property
    def head(self) -> TensorInfo:
        """The matrix that gives logits."""
        return next(info for name in (HEAD, TABLE) for info in self.tensors if info.name == name)


@dataclass(frozen=True)
class Draft:
    """A draft: what to call it (its quantisation, where it is known by name), its facts and its tensors.

    window: how far back all its layers but the last see where that is not what the draft says, 0 for no window.
    copied: the rows of the target's head that it keeps for itself, if it has a shortlist and no head of its own.
    """

    name: str
    spec: DraftSpec
    tensors: tuple[TensorInfo, ...]
    window: int | None = None
    copied: tuple[TensorInfo, ...] = ()

    @cached_property
    def buffers(self) -> dict[str, list[BufferSpec]]:
        """The weights by layout; a draft's own token table, where it has one, is among them."""
        infos = (*self.tensors, *self.copied)
        return {layout: draft_weight_buffers(infos, layout) for layout in WEIGHTS}

    @cached_property
    def layout_bytes(self) -> dict[str, int]:
        """Bytes of these weights by layout."""
        return {layout: total(buffers) for layout, buffers in self.buffers.items()}

    @cached_property
    def file_bytes(self) -> int:
        """Bytes of the file's weights."""
        return stored_bytes(self.tensors)

    @cached_property
    def matrices(self) -> list[TensorInfo]:
        """What a block multiplies with."""
        return [info for info in self.tensors if len(info.shape) == 2 and info.name != TABLE]

    @cached_property
    def coarse(self) -> bool:
        """Whether its weights are so coarse that it guesses worse."""
        return 8 * stored_bytes(self.matrices) / weights(self.matrices) < COARSE_BITS


def weights(tensors: Iterable[TensorInfo]) -> int:
    """How many weights the tensors hold."""
    return sum(math.prod(info.shape) for info in tensors)


def stored_bytes(tensors: Iterable[TensorInfo]) -> int:
    """Their bytes in the file."""
    return sum(info.nbytes for info in tensors)


def known_target(name: str) -> Target:
    """A model that needs no file, by a name of `models.known.key_of`."""
    model = known.target(name)
    return target_of(model, name, model.about, name)


def synthetic_target(name: str) -> Target:
    """A model of made-up weights by its full name; a UsageError lists them."""
    model = known.header(name)
    return target_of(model, model.path.name, f"synthetic weights in the shapes of {model.about}", model.key)


def synthetic_draft(name: str, target: Target) -> Draft:
    """A draft of made-up weights by its full name, checked against the target."""
    model = known.header(name)
    return draft_of(model, target, f"synthetic {model.path.name.rpartition(':')[2]}")


def known_advice(key: str) -> list[Advice]:
    """What an earlier report advises for a model of `guides.toml`, if it is there."""

    def pairs(row: dict[str, Any], name: str) -> tuple[tuple[str, str], ...]:
        return tuple((kv, draft) for kv, draft in row.get(name, []))

    text = resources.files("draftwood.planner").joinpath("guides.toml").read_text(encoding="utf-8")
    return [
        Advice(row["least"], row["most"], row["use"], pairs(row, "advice"), pairs(row, "refused"))
        for row in tomllib.loads(text).get(key, [])
    ]


def known_drafts(target: Target) -> list[Draft]:
    """The drafts that fit a target and need no file: those of a model with its layers, width and vocabulary."""
    for key in (name for model in known.names() for name in (model, *known.variants(model))):
        spec = known_target(key).spec
        if all(getattr(spec, size) == getattr(target.spec, size) for size in ("layers", "hidden", "vocab")):
            return [draft_of(known.draft(key, kind), target, kind) for kind in known.quantisations(key)]
    return []


def target_of(header: ModelHeader, name: str, about: str | None = None, key: str | None = None) -> Target:
    """A target from its header; errors as in `models.registry`."""
    spec = architecture(header).read_spec(header)
    about = about or f"{spec.architecture}, {spec.layers} layers"
    return Target(name, about, spec, tuple(header.tensors.values()), key)


def draft_of(
    header: DraftHeader,
    target: Target,
    name: str,
    causal: str = "file",
    tap_shift: str = "auto",
    window: int | None = None,
) -> Draft:
    """A draft from its header, checked against the target (a DraftMismatchError where it does not fit).

    causal, tap_shift, window: see `draft_spec.read_spec`.
    """
    spec = fit(read_spec(header, causal, tap_shift, window), target.spec)
    tensors = draft_tensors(header)
    copied = () if spec.shortlist is None or HEAD in tensors else (_rows(target.head, len(spec.shortlist)),)
    return Draft(name, spec, tuple(tensors.values()), copied=copied)


def _rows(head: TensorInfo, count: int) -> TensorInfo:
    """Some rows of a matrix."""
    shape, kind = (count, head.shape[-1]), head.block_type
    return TensorInfo(HEAD, shape, kind, count * kind.row_bytes(shape[-1]))


def target_of_file(path: Path) -> Target:
    """A target from its GGUF header; errors as in `formats.gguf` and `models.registry`."""
    return target_of(GGUFFile.open(path), path.name)


def draft_of_file(path: Path, target: Target) -> Draft:
    """A draft from its file or directory; errors as in `draft_of`."""
    return draft_of(open_source(path), target, path.name)


def windowed(draft: Draft, window: int) -> Draft:
    """The draft with another window; see `draft_spec.overriding`."""
    check_window(window)
    spec = dataclasses.replace(draft.spec, windows=overriding(window, draft.spec.layers))
    return dataclasses.replace(draft, spec=spec, window=window)


def named_draft(name: str, target: Target) -> Draft:
    """The known draft of that quantisation; a UsageError lists those there are."""
    drafts = known_drafts(target)
    found = next((draft for draft in drafts if draft.name == name.strip().lower()), None)
    if found is not None:
        return found
    if not drafts:
        raise UsageError(
            f"no draft for {target.name[:40]} is known by name, and {name[:40]!r} is no file; give a file, or none."
        )
    raise UsageError(
        f"draft {name[:40]!r} is neither a file nor a known quantisation; the known ones are "
        f"{', '.join(draft.name for draft in drafts)}, and none is plain decoding."
    )
