"""The tensors of DFlash drafts under one set of names, whatever the dialect of the file.

Dialects: GGUF of architecture `dflash` (llama.cpp), `dflash-draft` and `qwen35-dflash-draft` (older converters), and
the safetensors directory the drafts are published as (SPEC-dflash 1.7, 1.8; SPEC-draft-formats 1.2, 1.7).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from draftwood.errors import UnsupportedModelError
from draftwood.formats.gguf import GGUFFile
from draftwood.formats.header import ModelHeader, ModelSource
from draftwood.formats.safetensors import SafetensorsDirectory
from draftwood.formats.source import TensorInfo, quoted, shown

if TYPE_CHECKING:
    from torch import Tensor

DraftSource = ModelSource | SafetensorsDirectory
DraftHeader = ModelHeader | SafetensorsDirectory
"""What a draft's facts are read from; of a `DraftSource` its weights are too."""


def open_source(path: str | Path) -> DraftSource:
    """Open a draft: a GGUF file, or a directory (or file) of safetensors with its config.json."""
    path = Path(path)
    return GGUFFile.open(path) if path.suffix.lower() == ".gguf" else SafetensorsDirectory.open(path)


_NAME = re.compile(r"(?:(?:blk|layers)\.(?P<layer>\d+)\.)?(?P<stem>.+?)\.(?P<kind>weight|scale|weight\.scale)")

_TOP = {
    "fc": "fc",
    "dflash_fc": "fc",
    "dflash.fc": "fc",
    "enc.output_norm": "enc.output_norm",
    "dflash_hidden_norm": "enc.output_norm",
    "dflash.hidden_norm": "enc.output_norm",
    "hidden_norm": "enc.output_norm",
    "output_norm": "output_norm",
    "norm": "output_norm",
    "token_embd": "token_embd",
    "embed_tokens": "token_embd",
    "output": "output",
    "lm_head": "output",
}
_LAYER = {
    "attn_norm": "attn_norm",
    "input_layernorm": "attn_norm",
    "attn_q": "attn_q",
    "self_attn.q_proj": "attn_q",
    "attn_k": "attn_k",
    "self_attn.k_proj": "attn_k",
    "attn_v": "attn_v",
    "self_attn.v_proj": "attn_v",
    "attn_output": "attn_output",
    "self_attn.o_proj": "attn_output",
    "attn_q_norm": "attn_q_norm",
    "self_attn.q_norm": "attn_q_norm",
    "attn_k_norm": "attn_k_norm",
    "self_attn.k_norm": "attn_k_norm",
    "ffn_norm": "ffn_norm",
    "post_attention_norm": "ffn_norm",
    "post_attention_layernorm": "ffn_norm",
    "ffn_gate": "ffn_gate",
    "mlp.gate_proj": "ffn_gate",
    "ffn_up": "ffn_up",
    "mlp.up_proj": "ffn_up",
    "ffn_down": "ffn_down",
    "mlp.down_proj": "ffn_down",
}
VOCABULARY = "d2t"
"""The tensor of whole numbers that says which target token a row of a draft's own, smaller head stands for."""

_NO_WEIGHTS = (VOCABULARY, "t2d")
"""Tensors beside the weights; `t2d`, a mask over the target's tokens, says the same as `d2t` once more."""

_FLAVOURS = (
    (re.compile(r"selector|conv"), "a DFlash 2 draft (with convolutions or a candidate selector)"),
    (re.compile(r"markov|dspark|confidence|conf_proj"), "a DSpark draft (with a Markov or confidence head)"),
    (re.compile(r"domino"), "a Domino draft (with a correction head)"),
)


def _current(name: str) -> str | None:
    """A tensor's name in llama.cpp's current dialect; None for one that a DFlash 1 draft does not have."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    at, stem = (
        ("", _TOP.get(found["stem"]))
        if found["layer"] is None
        else (f"blk.{found['layer']}.", _LAYER.get(found["stem"]))
    )
    return None if stem is None else f"{at}{stem}.{found['kind']}"


def _spelled(source: DraftHeader) -> dict[str, str]:
    """Current name -> the file's own; UnsupportedModelError for a tensor that a DFlash 1 draft does not have."""
    names: dict[str, str] = {}
    for name in source.tensors:
        if name in _NO_WEIGHTS:
            continue
        current = _current(name)
        if current is None:
            raise _unsupported(source, name)
        names[current] = name
    return names


def draft_tensors(source: DraftHeader) -> dict[str, TensorInfo]:
    """The facts of a draft's tensors by their current names."""
    return {current: source.tensors[own] for current, own in _spelled(source).items()}


class DraftTensors:
    """A draft's tensors under their current names, whatever the dialect of `source`. A `TensorSource`."""

    def __init__(self, source: DraftSource) -> None:
        self._source, self._own_names = source, _spelled(source)
        self.tensors: Mapping[str, TensorInfo] = draft_tensors(source)

    @property
    def path(self) -> Path:
        """What was opened."""
        return self._source.path

    def tensor(self, name: str, device: str) -> Tensor:
        """The stored bytes of a tensor, by its current name or by the file's (which `TensorInfo` has)."""
        return self._source.tensor(self._own_names.get(name, name), device)


def file_name(source: DraftHeader) -> str:
    """The file's name for a message."""
    return shown(Path(source.path.name))


def _unsupported(source: DraftHeader, name: str) -> UnsupportedModelError:
    """The error about a tensor that a DFlash 1 draft does not have."""
    for other in (name, *source.tensors):
        for pattern, what in _FLAVOURS:
            if pattern.search(other):
                return UnsupportedModelError(
                    f"{file_name(source)} is {what}, which draftwood cannot run yet; "
                    "use a DFlash 1 draft of the same target."
                )
    return UnsupportedModelError(
        f"{file_name(source)}: tensor {quoted(name)} is not part of a DFlash 1 draft; use a draft without it."
    )
