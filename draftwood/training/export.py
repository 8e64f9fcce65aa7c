"""A draft as a GGUF file of architecture `dflash`, with the names of llama.cpp (SPEC-draft-formats 1.1, 1.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, LlamaFileType
from gguf.quants import quantize

from draftwood.formats import gguf_writer
from draftwood.formats.gguf import GGUFFile
from draftwood.formats.source import TensorInfo
from draftwood.training.draft_net import DraftShape

FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
}
"""Block types that matrices can be written in; norms are always float32."""


@dataclass(frozen=True)
class DraftFacts:
    """What a draft's file says of it.

    shape: its windows have one length, or none. shortlist: ascending target token ids that the draft proposes from,
    None for all; an engine that does not know the key uses the target's whole head.
    """

    name: str
    shape: DraftShape
    context_length: int
    shortlist: tuple[int, ...] | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the file, rows first."""
        draft = self.shape
        hidden, query, width = draft.hidden, draft.heads * draft.head_dim, draft.kv_heads * draft.head_dim
        layer = {
            "attn_norm": (hidden,),
            "attn_q": (query, hidden),
            "attn_k": (width, hidden),
            "attn_v": (width, hidden),
            "attn_output": (hidden, query),
            "attn_q_norm": (draft.head_dim,),
            "attn_k_norm": (draft.head_dim,),
            "ffn_norm": (hidden,),
            "ffn_gate": (draft.ffn, hidden),
            "ffn_up": (draft.ffn, hidden),
            "ffn_down": (hidden, draft.ffn),
        }
        return {
            "fc.weight": (hidden, len(draft.taps) * hidden),
            "enc.output_norm.weight": (hidden,),
            "output_norm.weight": (hidden,),
        } | {f"blk.{i}.{name}.weight": shape for i in range(draft.layers) for name, shape in layer.items()}


def write_gguf(
    path: str | Path,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    facts: DraftFacts,
    target: GGUFFile,
    matrix_type: str = "Q8_0",
) -> None:
    """Write a draft, whole or not at all.

    tensors: float32, by the names of `DraftFacts.shapes`. target: its tokenizer is copied, since files of this
    architecture carry it. matrix_type: a key of `FILE_TYPES`. ValueError where tensors and facts do not agree.
    """
    expected = facts.shapes()
    found = {name: tuple(array.shape) for name, array in tensors.items()}
    if wrong := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        name = wrong[0]
        raise ValueError(f"tensor {name!r} has shape {found.get(name)}, {expected.get(name)} was expected")
    infos = [TensorInfo.of(name, s, matrix_type if len(s) > 1 else "F32") for name, s in expected.items()]

    def stored(name: str) -> npt.NDArray[np.uint8]:
        array = np.ascontiguousarray(tensors[name], np.float32)
        kind = GGMLQuantizationType[matrix_type if array.ndim > 1 else "F32"]
        return np.ascontiguousarray(quantize(array, kind)).view(np.uint8)

    gguf_writer.write_gguf(path, _keys(facts, target, matrix_type), infos, stored)


def _keys(facts: DraftFacts, target: GGUFFile, matrix_type: str) -> dict[str, Any]:
    """The metadata."""
    draft = facts.shape
    own = {
        "block_count": draft.layers,
        "context_length": facts.context_length,
        "embedding_length": draft.hidden,
        "feed_forward_length": draft.ffn,
        "attention.head_count": draft.heads,
        "attention.head_count_kv": draft.kv_heads,
        "attention.key_length": draft.head_dim,
        "attention.value_length": draft.head_dim,
        "attention.layer_norm_rms_epsilon": draft.eps,
        "attention.causal": draft.causal,
        "rope.freq_base": draft.rope_base,
        "rope.dimension_count": draft.head_dim,
        "block_size": draft.block,
        "target_layers": [tap + 1 for tap in draft.taps],
    }
    lengths = {window for window in draft.windows if window is not None}
    if lengths:
        (own["attention.sliding_window"],) = lengths
        own["attention.sliding_window_pattern"] = [window is not None for window in draft.windows]
    if facts.shortlist is not None:
        own["shortlist"] = list(facts.shortlist)
    tokenizer = {key: value for key, value in target.metadata.items() if key.startswith("tokenizer.")}
    general = {
        "general.architecture": "dflash",
        "general.name": facts.name,
        "general.file_type": int(FILE_TYPES[matrix_type]),
        "general.quantization_version": 2,
    }
    own = {f"dflash.{key}": value for key, value in own.items()}
    return general | own | tokenizer | {"tokenizer.ggml.mask_token_id": draft.mask_token}
