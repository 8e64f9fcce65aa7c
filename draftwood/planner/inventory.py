"""The models that a plan is made for: read from their files, or known by name without them. Torch-free."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from draftwood.buffers import total
from draftwood.errors import UsageError
from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.formats.gguf import GGUFFile
from draftwood.formats.source import TensorInfo
from draftwood.kernels.buffers import LAYOUTS, weight_buffer
from draftwood.models.buffers import HEAD, TABLE, loaded, state_buffers, weight_buffers
from draftwood.models.draft_spec import DraftSpec, check_window, fit, overriding, read_spec
from draftwood.models.draft_tensors import DraftTensors, open_source
from draftwood.models.registry import architecture
from draftwood.models.spec import DeltaSpec, ModelSpec

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
    """A target: what to call it, its facts and its tensors. key: its name in `models.toml`, None for a file."""

    name: str
    about: str
    spec: ModelSpec
    tensors: tuple[TensorInfo, ...]
    key: str | None = None

    @cached_property
    def layout_bytes(self) -> dict[str, int]:
        """Bytes of the weights by layout, without the table that tokens are looked up in."""
        return {layout: total(weight_buffers(self.tensors, layout, self.spec.layers)) for layout in LAYOUTS}

    @property
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
    """

    name: str
    spec: DraftSpec
    tensors: tuple[TensorInfo, ...]
    window: int | None = None

    @cached_property
    def layout_bytes(self) -> dict[str, int]:
        """Bytes of the weights by layout; a draft's own token table, where it has one, is among them."""
        return {layout: sum(weight_buffer(info, layout).nbytes for info in self.tensors) for layout in LAYOUTS}

    @property
    def matrices(self) -> list[TensorInfo]:
        """What a block multiplies with."""
        return [info for info in self.tensors if len(info.shape) == 2 and info.name != TABLE]

    @property
    def coarse(self) -> bool:
        """Whether its weights are so coarse that it guesses worse."""
        return 8 * stored_bytes(self.matrices) / weights(self.matrices) < COARSE_BITS


def weights(tensors: Iterable[TensorInfo]) -> int:
    """How many weights the tensors hold."""
    return sum(math.prod(info.shape) for info in tensors)


def stored_bytes(tensors: Iterable[TensorInfo]) -> int:
    """Their bytes in the file."""
    return sum(info.nbytes for info in tensors)


@cache
def _known() -> dict[str, dict[str, Any]]:
    text = resources.files("draftwood.planner").joinpath("models.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def known_names() -> list[str]:
    """The models that need no file."""
    return list(_known())


def known_key(name: str) -> str | None:
    """The key in `models.toml` that a name or an alias means, whatever its case; None if it is not known."""
    wanted = name.strip().lower()
    return next((key for key, row in _known().items() if wanted == key or wanted in row["aliases"]), None)


def known_target(key: str) -> Target:
    """A model of `models.toml`."""
    row = _known()[key]
    interval, layers = row["full_attention_interval"], row["layers"]
    attention = tuple((i + 1) % interval == 0 for i in range(layers))
    plain = ("architecture", "layers", "hidden", "ffn", "vocab", "heads", "kv_heads", "head_dim", "eps")
    rotary = ("rope_width", "rope_base", "pairing", "context_length", "gated")
    spec = ModelSpec(
        **{name: row[name] for name in (*plain, *rotary)}, attention=attention, delta=DeltaSpec(**row["delta"])
    )
    blocks = {
        "all": range(layers),
        "attention": [i for i in range(layers) if attention[i]],
        "delta": [i for i in range(layers) if not attention[i]],
    }
    return Target(key, row["about"], spec, tuple(_tensors(row["tensors"], blocks, "")), key)


def known_advice(key: str) -> list[Advice]:
    """What an earlier report advises for a model of `models.toml`."""

    def pairs(row: dict[str, Any], name: str) -> tuple[tuple[str, str], ...]:
        return tuple((kv, draft) for kv, draft in row.get(name, []))

    return [
        Advice(row["least"], row["most"], row["use"], pairs(row, "advice"), pairs(row, "refused"))
        for row in _known()[key].get("guide", [])
    ]


def known_drafts(target: Target) -> list[Draft]:
    """The drafts that fit a target and need no file: those of a model with its layers, width and vocabulary."""
    for key, row in _known().items():
        if "draft" in row and all(row[name] == getattr(target.spec, name) for name in ("layers", "hidden", "vocab")):
            return [_known_draft(key, name) for name in row["draft"]["quantisations"]]
    return []


def _known_draft(key: str, quantisation: str) -> Draft:
    row, target = _known()[key]["draft"], _known()[key]
    windows = tuple(row["window"] if slides else None for slides in row["sliding"])
    plain = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "eps", "rope_base", "block_size", "mask_token")
    spec = DraftSpec(
        source=row["about"],
        architecture="dflash",
        **{name: row[name] for name in plain},
        taps=tuple(row["taps"]),
        windows=windows,
        causal=tuple(row["sliding"]),
        block_sizes=(),
        vocab=target["vocab"],
        target_hidden=target["hidden"],
        target_layers=target["layers"],
    )
    tensors = _tensors(row["tensors"], {"all": range(row["layers"])}, row["quantisations"][quantisation])
    return Draft(quantisation, spec, tuple(tensors))


def _tensors(rows: list[dict[str, Any]], blocks: dict[str, Sequence[int]], kind: str) -> Iterable[TensorInfo]:
    """The tensors that the rows of `models.toml` stand for; `kind` is the type of those that name none."""
    for row in rows:
        shape, usual = tuple(row["shape"]), row.get("type", kind)
        if row["on"] == "none":
            yield _tensor(row["name"], shape, usual)
            continue
        other = {block: name for name, numbers in row.get("but", {}).items() for block in numbers}
        for block in blocks[row["on"]]:
            yield _tensor(f"blk.{block}.{row['name']}", shape, other.get(block, usual))


def _tensor(name: str, shape: tuple[int, ...], kind: str) -> TensorInfo:
    block = BLOCK_TYPES[kind]
    return TensorInfo(name, shape, block, math.prod(shape[:-1]) * block.row_bytes(shape[-1]))


def target_of_file(path: Path) -> Target:
    """A target from its GGUF header; errors as in `formats.gguf` and `models.registry`."""
    source = GGUFFile.open(path)
    spec = architecture(source).read_spec(source)
    return Target(path.name, f"{spec.architecture}, {spec.layers} layers", spec, tuple(source.tensors.values()))


def draft_of_file(
    path: Path, target: Target, causal: str = "file", tap_shift: str = "auto", window: int | None = None
) -> Draft:
    """A draft from its header, checked against the target (a DraftMismatchError where it does not fit).

    causal, tap_shift, window: see `draft_spec.read_spec`.
    """
    source = open_source(path)
    spec = fit(read_spec(source, causal, tap_shift, window), target.spec)
    return Draft(path.name, spec, tuple(DraftTensors(source).tensors.values()))


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
