"""The facts of a DFlash draft, read from its metadata in every dialect (SPEC-dflash 1.8; SPEC-draft-formats 1.1-1.7).

Keys are looked up in all spellings at once, so a file that mixes dialects is read too. Importing this does not import
torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from draftwood.batch import MAX_ROWS
from draftwood.errors import DraftMismatchError, FormatError, UnsupportedModelError, UsageError
from draftwood.formats.header import SYNTHETIC_KEY, ModelHeader
from draftwood.formats.source import quoted
from draftwood.models.draft_tensors import VOCABULARY, DraftHeader, draft_tensors, file_name
from draftwood.models.spec import ModelSpec

LEGACY = ("dflash-draft", "qwen35-dflash-draft")
"""GGUF architectures of older converters, which left keys out or wrote wrong ones."""

CAUSAL = ("file", "none", "sliding", "all")
TAP_SHIFTS = ("auto", "0", "1")

_QWEN36_TAPS, _QWEN36_SLIDING, _QWEN36_WINDOW = (1, 16, 31, 46, 61), (True, True, True, True, False), 2048
_CONVERTER_BASE = 1e6
"""The rotary base that one converter writes whatever the draft's is."""


@dataclass(frozen=True)
class DraftSpec:
    """The facts of a DFlash draft.

    source: the file's name, for messages. rope_base: None until `fit` takes the target's. taps: target
    layers, from 0, whose output residual is a feature, in order. windows, causal: per layer, how far back a
    row sees (None: everything) and whether it is kept from the rows of the block after it. block_sizes:
    further block lengths that the draft was trained for. vocab, target_layers: what the file says of its
    target, 0 where it does not (`fit` sets vocab). shortlist: the target's token ids that it proposes from,
    ascending, None for all of them (not hashed, as it may be long). synthetic: whether its weights are made up.
    notes: decisions that a user may want to know of.
    """

    source: str
    architecture: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope_base: float | None
    block_size: int
    mask_token: int
    taps: tuple[int, ...]
    windows: tuple[int | None, ...]
    causal: tuple[bool, ...]
    block_sizes: tuple[int, ...]
    vocab: int
    target_hidden: int
    target_layers: int
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    shortlist: tuple[int, ...] | None = field(default=None, repr=False, hash=False)
    synthetic: bool = False
    notes: tuple[str, ...] = ()


class _Facts:
    """Values of a draft's metadata by any of their spellings: `integer("block_count", "num_hidden_layers")`.

    places: prefixes in the order in which they are searched, the first of them for every spelling first.
    offsets: whether a row of `d2t` counts from its own number, as published drafts have it, and not from 0.
    """

    def __init__(self, source: DraftHeader, metadata: Mapping[str, Any], places: Sequence[str], offsets: bool) -> None:
        self.name, self.metadata, self._places, self.offsets = file_name(source), metadata, places, offsets

    def find(self, *names: str) -> Any:
        """The first value that is there and not null, or None."""
        keys = (place + name for place in self._places for name in names)
        return next((self.metadata[key] for key in keys if self.metadata.get(key) is not None), None)

    def integer(self, *names: str, default: int | None = None, low: int = 1, high: int = 1 << 24) -> int:
        """A whole number in low..high."""
        value = self.find(*names)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(f"{names[0]} is {value!r:.40}, a whole number from {low} to {high} was expected")
        return value

    def real(self, *names: str) -> float | None:
        """A finite positive number; None where the file has none, or 0."""
        value = self.find(*names)
        if value is None or value == 0:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise self.fail(f"{names[0]} is {value!r:.40}, a positive number was expected")
        return float(value)

    def integers(self, *names: str) -> tuple[int, ...] | None:
        """A list of whole numbers from 0; None where the file has none."""
        value = self.find(*names)
        if value is None:
            return None
        if not isinstance(value, list) or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in value):
            raise self.fail(f"{names[0]} is {value!r:.40}, a list of whole numbers was expected")
        return tuple(value)

    def flag(self, *names: str) -> bool | None:
        """True or false; None where the file says neither."""
        value = self.find(*names)
        if value is not None and not isinstance(value, bool):
            raise self.fail(f"{names[0]} is {value!r:.40}, true or false was expected")
        return value

    def fail(self, found: str) -> FormatError:
        """The error about a value that makes no sense."""
        return FormatError(f"{self.name}: {found}; the draft is damaged or incomplete, download or convert it again.")


def _facts(source: DraftHeader) -> tuple[str, _Facts]:
    """The architecture, checked, and the metadata."""
    if isinstance(source, ModelHeader):
        name = source.architecture
        if name != "dflash" and name not in LEGACY:
            raise UnsupportedModelError(
                f"{file_name(source)}: {quoted(name)} is not a DFlash draft that draftwood runs; "
                f"it runs the architectures dflash, {', '.join(LEGACY)}."
            )
        return name, _Facts(source, source.metadata, (f"{name}.", f"{name}.dflash.", "dflash."), offsets=False)
    config = source.config
    nested = {f"{key}.{k}": v for key, value in config.items() if isinstance(value, dict) for k, v in value.items()}
    if not any(key.startswith("dflash_config.") for key in nested):
        raise UnsupportedModelError(
            f"{file_name(source)}: config.json has no dflash_config, so this is not a DFlash draft; "
            "give one made for the target."
        )
    classes = config.get("architectures") or ["DFlashDraftModel"]
    places = ("dflash_config.", "", "rope_parameters.")
    return str(classes[0]), _Facts(source, config | nested, places, offsets=True)


def read_spec(
    source: DraftHeader, causal: str = "file", tap_shift: str = "auto", window: int | None = None
) -> DraftSpec:
    """The draft's facts.

    causal: in-block causality, "file" or what overrides it (DESIGN section 8): "none", "sliding" or "all"
    layers. tap_shift: what to subtract from the file's layer numbers, "0", "1" or "auto" (SPEC-draft-formats
    1.4). window: how far back all layers but the last see, 0 for no window anywhere, None for the file's. UsageError
    for another option, UnsupportedModelError for a draft of another kind, FormatError where the facts do not fit
    together.
    """
    if causal not in CAUSAL:
        raise UsageError(f"The draft's causality is {causal!r}, but must be one of {', '.join(CAUSAL)}; choose one.")
    if tap_shift not in TAP_SHIFTS:
        raise UsageError(f"The tap shift is {tap_shift!r}, but must be one of {', '.join(TAP_SHIFTS)}; choose one.")
    check_window(window)
    architecture, facts = _facts(source)
    tensors = draft_tensors(source)
    _refuse_unsupported(facts)
    notes: list[str] = []

    layers, hidden = (
        facts.integer("block_count", "num_hidden_layers", high=1024),
        facts.integer("embedding_length", "hidden_size"),
    )
    heads = facts.integer("attention.head_count", "num_attention_heads")
    kv_heads = facts.integer("attention.head_count_kv", "num_key_value_heads", default=heads)
    head_dim = facts.integer("attention.key_length", "head_dim", default=max(1, hidden // heads))
    if heads % kv_heads or head_dim % 2:
        raise facts.fail(f"{heads} query heads of {head_dim} do not fit {kv_heads} KV heads")
    if facts.integer("rope.dimension_count", default=head_dim) != head_dim:
        raise facts.fail(f"only a part of a head of {head_dim} is rotated, a DFlash draft rotates all of it")

    taps = _taps(facts, tap_shift, notes)
    fc = tensors.get("fc.weight")
    if fc is None:
        raise facts.fail("it has no tensor fc.weight, which reads the target's features")
    if len(fc.shape) != 2 or fc.shape[0] != hidden or fc.shape[1] % len(taps):
        raise facts.fail(f"fc.weight has shape {tuple(fc.shape)}, {hidden} rows of {len(taps)} features were expected")

    sliding, windows = _windows(facts, architecture, layers, taps, notes)
    if window is not None:
        windows = overriding(window, layers)
        notes.append(f"the window is {window or 'off'}, as asked; which layers are causal is not changed by that")
    mask = facts.metadata.get("tokenizer.ggml.mask_token_id")
    mask = facts.find("mask_token_id") if mask is None else mask
    if isinstance(mask, bool) or not isinstance(mask, int) or mask < 0:
        raise facts.fail(
            f"its mask token id is {'missing' if mask is None else repr(mask)[:40]}, a token id was expected"
        )
    return DraftSpec(
        source=facts.name,
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        ffn=facts.integer("feed_forward_length", "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        eps=facts.real("attention.layer_norm_rms_epsilon", "rms_norm_eps") or 1e-6,
        rope_base=facts.real("rope.freq_base", "rope_theta"),
        block_size=facts.integer("block_size", default=16, low=2, high=MAX_ROWS),
        mask_token=mask,
        taps=taps,
        windows=windows,
        causal=_causality(facts, causal, sliding, notes),
        block_sizes=facts.integers("block_sizes") or (),
        vocab=facts.integer("vocab_size", default=len(facts.metadata.get("tokenizer.ggml.tokens", ())), low=0),
        target_hidden=fc.shape[1] // len(taps),
        target_layers=facts.integer("num_target_layers", default=0, low=0),
        embedding_scale=facts.real("embedding_scale", "input_embedding_scale") or 1.0,
        logit_scale=facts.real("logit_scale", "output_multiplier") or 1.0,
        logit_cap=facts.real("final_logit_softcapping"),
        shortlist=_shortlist(source, facts),
        synthetic=facts.metadata.get(SYNTHETIC_KEY) is True,
        notes=tuple(notes),
    )


def overriding(window: int, layers: int) -> tuple[int | None, ...]:
    """The windows of a draft whose own are overridden: all layers but the last see back `window`; 0: all see it all."""
    return (None,) * layers if window == 0 else (window,) * (layers - 1) + (None,)


def check_window(window: int | None) -> None:
    """A UsageError for a draft window that is none: None is the file's, 0 none at all."""
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or not 0 <= window <= 1 << 30):
        raise UsageError(
            f"The draft's window is {window!r:.40}, but must be a whole number of tokens, or 0 for no window; "
            "leave it out to take the file's."
        )


def _refuse_unsupported(facts: _Facts) -> None:
    """Parts of other drafts that only the metadata shows."""
    scaling = facts.find(
        "rope.scaling.type", "rope_scaling.rope_type", "rope_scaling.type", "rope_parameters.rope_type"
    )
    for found, what in (
        (scaling not in (None, "none", "default"), f"rotary scaling {quoted(scaling)}"),
        (
            facts.find("decoder_arch") is not None,
            f"decoder architecture {quoted(facts.find('decoder_arch'))}",
        ),
        (facts.find("hyper_connection.count") is not None, "hyper-connections"),
        (facts.flag("rope_is_neox_style") is False, "adjacent rotary pairs"),
        (facts.find("partial_rotary_factor") not in (None, 1), "partly rotated heads"),
        (
            facts.integer("attention.value_length", default=0, low=0) not in (0, facts.find("attention.key_length")),
            "keys and values of different width",
        ),
    ):
        if found:
            raise UnsupportedModelError(
                f"{facts.name} is a draft with {what}, which draftwood cannot run; use a DFlash 1 draft without it."
            )


def _taps(facts: _Facts, tap_shift: str, notes: list[str]) -> tuple[int, ...]:
    """The tapped target layers, from 0."""
    shift, numbers = 1, facts.integers("target_layers")
    if numbers is None:
        shift, numbers = 0, facts.integers("target_layer_ids")
    elif "dflash.mask_token_id" in facts.metadata and "tokenizer.ggml.mask_token_id" not in facts.metadata:
        shift = 0
        notes.append("the taps are taken as they stand: the file is of an early converter, which did not add 1 to them")
    if not numbers:
        raise facts.fail("it does not say which target layers it reads (target_layers)")
    if tap_shift != "auto":
        notes.append(f"{tap_shift} is subtracted from the file's layer numbers, as asked (its dialect means {shift})")
        shift = int(tap_shift)
    if min(numbers) < shift:
        raise facts.fail(
            f"its target layers {list(numbers)!r:.40} are numbered from 0 where 1 was expected "
            "(a tap shift of 0 reads them so)"
        )
    return tuple(number - shift for number in numbers)


def _windows(
    facts: _Facts, architecture: str, layers: int, taps: tuple[int, ...], notes: list[str]
) -> tuple[tuple[bool, ...], tuple[int | None, ...]]:
    """Per layer: whether it is a sliding one, and its window."""
    window: int | None = facts.integer(
        "attention.sliding_window", "sliding_window", "swa_window_size", default=0, low=0, high=1 << 30
    )
    pattern, types = facts.find("attention.sliding_window_pattern"), facts.find("layer_types")
    enabled = facts.flag("use_sliding_window")
    if isinstance(types, list):
        pattern = [kind == "sliding_attention" for kind in types]
    elif isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        # A number says that every n-th layer is a full one.
        pattern = [(i + 1) % pattern != 0 for i in range(layers)]
    if pattern is None:
        if not window and architecture in LEGACY and layers == len(_QWEN36_SLIDING) and taps == _QWEN36_TAPS:
            pattern, window = list(_QWEN36_SLIDING), _QWEN36_WINDOW
            notes.append(f"the file names no window; layers 0 to 3 get the Qwen3.6-27B draft's, {window} tokens")
        elif window and enabled is not False and facts.find("max_window_layers") is None:
            raise facts.fail(f"it has a window of {window} tokens but does not say for which layers")
        else:
            pattern = [False] * layers
    if not isinstance(pattern, list) or len(pattern) != layers or not all(isinstance(s, bool) for s in pattern):
        raise facts.fail(
            f"its sliding window pattern is {pattern!r:.60}, one entry for each layer ({layers}) was expected"
        )
    if any(pattern) and enabled is False:
        window = 0
        notes.append("use_sliding_window is false, so the sliding layers see the whole context")
    elif any(pattern) and not window:
        raise facts.fail("it has sliding layers but does not say how long their window is")
    return tuple(pattern), tuple(window or None if slides else None for slides in pattern)


def _shortlist(source: DraftHeader, facts: _Facts) -> tuple[int, ...] | None:
    """The token ids of the draft's head, of our own key or of the published form (SPEC-draft-formats 1.2)."""
    ids = facts.integers("shortlist")
    if VOCABULARY in source.tensors:
        stored = source.whole_numbers(VOCABULARY).reshape(-1).tolist()
        ids = tuple(row + value if facts.offsets else value for row, value in enumerate(stored))
    if ids is None:
        return None
    vocab = len(facts.metadata.get("tokenizer.ggml.tokens", ())) or 1 << 31
    if not ids or ids[0] < 0 or ids[-1] >= vocab or any(a >= b for a, b in pairwise(ids)):
        raise facts.fail(
            f"the {len(ids)} token ids that it proposes from are not in ascending order, all different and "
            f"from 0 to {vocab - 1}"
        )
    return ids


def _causality(facts: _Facts, causal: str, sliding: tuple[bool, ...], notes: list[str]) -> tuple[bool, ...]:
    """Per layer, whether a row is kept from the block's rows after it, by the rules of DESIGN section 8."""
    if causal == "none" or causal == "all":
        return (causal == "all",) * len(sliding)
    if causal == "file":
        stated = facts.flag("attention.causal")
        if stated is None:
            stated = facts.metadata.get("is_causal")
        if stated is None and (stated := facts.flag("causal")) is not None:
            notes.append("in-block causality is taken from dflash_config.causal, which the published reference ignores")
        if isinstance(stated, bool):
            return (stated,) * len(sliding)
        if stated is not None:
            raise facts.fail(f"is_causal is {stated!r:.40}, true or false was expected")
        if any(sliding):
            notes.append("the file does not state in-block causality: sliding layers are causal, full ones are not")
    return sliding


def fit(spec: DraftSpec, target: ModelSpec) -> DraftSpec:
    """The draft on this target, its rotary base and vocabulary settled; a DraftMismatchError where they do not fit."""
    needed = max(spec.taps) + 1
    if (
        spec.hidden != target.hidden
        or spec.target_hidden != target.hidden
        or needed > target.layers
        or spec.target_layers not in (0, target.layers)
    ):
        layers = f"{spec.target_layers} layers" if spec.target_layers else f"at least {needed} layers"
        hidden = (
            f"{spec.target_hidden}"
            if spec.hidden == spec.target_hidden
            else f"{spec.target_hidden} (its own is {spec.hidden})"
        )
        raise DraftMismatchError(
            f"{spec.source}: this draft was made for a target of hidden size {hidden} with {layers}, "
            f"the target has hidden size {target.hidden} and {target.layers} layers; "
            "use the draft made for it."
        )
    if spec.mask_token >= target.vocab:
        raise DraftMismatchError(
            f"{spec.source}: this draft's mask token is {spec.mask_token}, the target has a vocabulary of "
            f"{target.vocab} tokens; use the draft made for it."
        )
    if spec.shortlist is not None and spec.shortlist[-1] >= target.vocab:
        raise DraftMismatchError(
            f"{spec.source}: this draft proposes token {spec.shortlist[-1]}, the target has a vocabulary of "
            f"{target.vocab} tokens; use the draft made for it."
        )
    notes = list(spec.notes)
    if spec.vocab not in (0, target.vocab):
        notes.append(f"the draft's file counts {spec.vocab} tokens, the target has {target.vocab}")
    base = spec.rope_base
    if base is None:
        base = target.rope_base
        notes.append(f"the file names no rotary base; the target's, {base:g}, is used")
    elif spec.architecture == "qwen35-dflash-draft" and base == _CONVERTER_BASE and base != target.rope_base:
        base = target.rope_base
        notes.append(f"the file's rotary base, {_CONVERTER_BASE:g}, is its converter's; the target's is used, {base:g}")
    return dataclasses.replace(spec, rope_base=base, vocab=target.vocab, notes=tuple(notes))
