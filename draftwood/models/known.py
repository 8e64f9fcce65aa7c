"""Models that are known without their files: the headers that `known.toml` stands for. Torch-free.

A name is that of a table, or an alias of it, with the name of a variant behind it: "qwen3.6-27b", "27b-4layers". Its
draft is that name with "-dflash", and a quantisation if it is not the first: "qwen3.6-27b-dflash:q4_k_m".
"""

from __future__ import annotations

import struct
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from draftwood.errors import UsageError
from draftwood.formats.header import ModelHeader
from draftwood.formats.source import TensorInfo
from draftwood.models import draft_spec
from draftwood.models.buffers import TABLE
from draftwood.models.registry import architecture
from draftwood.models.spec import ModelSpec

SYNTHETIC = "synthetic:"
"""What stands before a known model's name where made-up weights are meant."""

DRAFT = "-dflash"
_FUSE = "fc.weight"


class KnownModel(ModelHeader):
    """A header that needs no file. key: the target's name. about: a few words. vocab: of the target."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], key: str, about: str, vocab: int) -> None:
        super().__init__(path, metadata, {})
        self.key, self.about, self.vocab = key, about, vocab


@dataclass(frozen=True)
class Changes:
    """What differs from a model of `known.toml`: its vocabulary (None: nothing), its keys and its draft's keys."""

    vocab: int | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    draft_keys: Mapping[str, Any] = field(default_factory=dict)


@cache
def _rows() -> dict[str, dict[str, Any]]:
    text = resources.files("draftwood.models").joinpath("known.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def is_synthetic(name: str) -> bool:
    """Whether a name asks for made-up weights."""
    return name.strip().lower().startswith(SYNTHETIC)


def names() -> list[str]:
    """The models, without their variants."""
    return list(_rows())


def variants(name: str) -> list[str]:
    """The names of a model's variants."""
    return [f"{name}-{variant}" for variant in _rows()[name]["variants"]]


def quantisations(name: str) -> list[str]:
    """Those of a model's draft."""
    return list(_rows()[_parts(name)[0]]["draft"]["quantisations"])


def key_of(name: str) -> str | None:
    """The name of the model or variant that a name or an alias means, whatever its case; None if it is not known."""
    wanted = name.strip().lower()
    for key, row in _rows().items():
        endings = ["", *(f"-{variant}" for variant in row["variants"])]
        spellings = {spelling + ending: key + ending for spelling in (key, *row["aliases"]) for ending in endings}
        if wanted in spellings:
            return spellings[wanted]
    return None


def _parts(name: str) -> tuple[str, str]:
    """The model and the variant ("": none) of a name that `key_of` gave."""
    key = next(key for key in _rows() if name == key or name.startswith(f"{key}-"))
    return key, name.removeprefix(key).removeprefix("-")


def _changes(name: str) -> Changes:
    key, variant = _parts(name)
    return Changes(**_rows()[key]["variants"][variant]) if variant else Changes()


def header(name: str) -> KnownModel:
    """The header of a known target or draft by its full name, `SYNTHETIC` before it or not; a UsageError lists them."""
    base, _, quantisation = name.strip().lower().removeprefix(SYNTHETIC).partition(":")
    key = key_of(base.removesuffix(DRAFT))
    if key is not None:
        if not base.endswith(DRAFT) and not quantisation:
            return target(key)
        if base.endswith(DRAFT) and (not quantisation or quantisation in quantisations(key)):
            return draft(key, quantisation or quantisations(key)[0])
    listed = ", ".join(f"{SYNTHETIC}{name}" for key in names() for name in (key, *variants(key)))
    suffixes = " or ".join(f"{DRAFT}:{kind}" for kind in quantisations(names()[0]))
    raise UsageError(
        f"{name[:60]!r} is no model that is known without a file; those are {listed}, "
        f"and their drafts, with {suffixes} behind the name."
    )


def target(key: str, changes: Changes | None = None) -> KnownModel:
    """A target's header, as of its file but for name and tokenizer; `changes` take the place of the variant's."""
    model, variant = _parts(key)
    row, changes = _rows()[model], changes or _changes(key)
    about = row["about"] + (f", its {variant} variant" if variant else "")
    metadata, vocab = _stored(row["keys"] | changes.keys), changes.vocab or row["vocab"]
    made = KnownModel(Path(SYNTHETIC + key), metadata, key, about, vocab)
    # The shapes are written in words that the facts explain, and of the tensors those need the table alone.
    hidden = made.require(f"{made.architecture}.embedding_length")
    made.tensors = {TABLE: TensorInfo.of(TABLE, (vocab, hidden), "F32")}
    spec = architecture(made).read_spec(made)
    attention = [i for i in range(spec.layers) if spec.attention[i]]
    delta = [i for i in range(spec.layers) if not spec.attention[i]]
    blocks = {"all": range(spec.layers), "attention": attention, "delta": delta}
    made.tensors = {info.name: info for info in _tensors(row["tensors"], blocks, _target_widths(spec), "")}
    return made


def draft(key: str, quantisation: str, changes: Changes | None = None) -> KnownModel:
    """The same of a target's draft."""
    whole = _rows()[_parts(key)[0]]
    row, changes = whole["draft"], changes or _changes(key)
    kind = row["quantisations"][quantisation]
    metadata = _stored(row["keys"] | {"general.file_type": kind["file_type"]} | changes.draft_keys)
    path = Path(f"{SYNTHETIC}{key}{DRAFT}:{quantisation}")
    made = KnownModel(path, metadata, key, row["about"], changes.vocab or whole["vocab"])
    hidden, taps = made.require("dflash.embedding_length"), len(made.require("dflash.target_layers"))
    made.tensors = {_FUSE: TensorInfo.of(_FUSE, (hidden, taps * hidden), "F32")}
    spec = draft_spec.read_spec(made)
    widths = {
        "hidden": spec.hidden,
        "ffn": spec.ffn,
        "head": spec.head_dim,
        "query": spec.heads * spec.head_dim,
        "key": spec.kv_heads * spec.head_dim,
        "features": taps * hidden,
    }
    rows = _tensors(row["tensors"], {"all": range(spec.layers)}, widths, kind["type"])
    made.tensors = {info.name: info for info in rows}
    return made


def _target_widths(spec: ModelSpec) -> dict[str, int]:
    """The words that the shapes of a target's tensors are written in."""
    widths = {
        "vocab": spec.vocab,
        "hidden": spec.hidden,
        "ffn": spec.ffn,
        "head": spec.head_dim,
        "query": spec.query_width,
        "key": spec.kv_heads * spec.head_dim,
        "attended": spec.heads * spec.head_dim,
    }
    delta = spec.delta
    if delta is not None:
        widths |= {
            "channels": delta.channels,
            "value": delta.value_width,
            "value_heads": delta.value_heads,
            "state": delta.state_dim,
            "taps": delta.taps,
        }
    return widths


def _stored(keys: dict[str, Any]) -> dict[str, Any]:
    """Metadata as a file gives it back: reals have 32 bits there."""
    return {
        key: struct.unpack("<f", struct.pack("<f", value))[0] if isinstance(value, float) else value
        for key, value in keys.items()
    }


def _tensors(
    rows: list[dict[str, Any]], blocks: Mapping[str, Sequence[int]], widths: Mapping[str, int], kind: str
) -> Iterator[TensorInfo]:
    """The tensors that the rows of a table stand for, block by block; `kind` is the type of those that name none."""
    for block in (None, *blocks["all"]):
        for row in rows:
            if block not in blocks.get(row["on"], (None,)):
                continue
            other = {number: name for name, numbers in row.get("but", {}).items() for number in numbers}
            name = row["name"] if block is None else f"blk.{block}.{row['name']}"
            yield TensorInfo.of(name, tuple(widths[w] for w in row["shape"]), other.get(block, row.get("type", kind)))
