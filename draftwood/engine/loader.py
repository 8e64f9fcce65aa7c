"""From a config to a target, its tokenizer and a drafter."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from draftwood.cache.registry import check_width, kv_pair
from draftwood.cache.spec import KVSpec
from draftwood.decode.drafters import registry as drafters
from draftwood.decode.drafters.base import Drafter, DrafterRequest
from draftwood.engine.config import EngineConfig
from draftwood.engine.fetch import DRAFTS, resolve
from draftwood.errors import DeviceError, FileError, UsageError
from draftwood.formats.gguf import GGUFFile
from draftwood.formats.safetensors import SafetensorsDirectory
from draftwood.layers.weights import Weights
from draftwood.models.base import Model
from draftwood.models.registry import architecture
from draftwood.text.tokenizer import Tokenizer

AUTO_KV = {"cpu": "f32", "cuda": "f16"}
AUTO_DRAFT_KV = {"cpu": "f32", "cuda": "q8_0"}
"""On a CPU decoding q8_0 rows costs a small draft more time than their bytes; rounding there can cost guesses only."""

FINGERPRINT_BYTES = 1 << 20


@dataclass(frozen=True)
class LoadedTarget:
    """A target on its device, with what was read beside it. weight_forms: form -> share of the GGUF bytes."""

    model: Model
    tokenizer: Tokenizer | None
    path: Path
    fingerprint: str
    weight_forms: dict[str, float]


def pick_device(wanted: str) -> str:
    """ "auto" takes a GPU when torch sees one."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "device 'cuda' was asked for, but torch sees no GPU; install a CUDA or ROCm build of torch, "
            "or use --device cpu."
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def pick_kv(wanted: str, device: str) -> tuple[KVSpec, KVSpec]:
    """The KV types of K and V; "auto" depends on the device."""
    return kv_pair(AUTO_KV[device] if wanted == "auto" else wanted)


def pick_draft_kv(wanted: str, device: str) -> tuple[KVSpec, KVSpec]:
    """The same for a draft's own cache."""
    return kv_pair(AUTO_DRAFT_KV[device] if wanted == "auto" else wanted)


def load_target(config: EngineConfig, device: str) -> LoadedTarget:
    """Open, check and load the target."""
    path = resolve(config.target)
    source = GGUFFile.open(path)
    module = architecture(source)
    spec = module.read_spec(source)
    check_width(pick_kv(config.kv, device), spec.head_dim)
    weights = Weights(source, device, config.dtype)
    model = module.build(spec, weights)
    has_text = source.get("tokenizer.ggml.tokens") is not None
    total = sum(weights.forms.values())
    return LoadedTarget(
        model,
        Tokenizer.from_metadata(source.metadata) if has_text else None,
        path,
        fingerprint(path),
        {form: size / total for form, size in weights.forms.items()},
    )


def load_drafter(config: EngineConfig, target: Model, device: str) -> Drafter:
    """The drafter that `config.draft` names; plain decoding's when there is none."""
    spec = drafters.named_drafter(config.draft or "none")
    path = None
    if spec is None:
        if config.draft is None:
            raise UsageError("no draft was given; use a draft file or 'lookup'.")
        path = resolve(config.draft, DRAFTS)
        spec = drafters.drafter_of_architecture(path, draft_architecture(path))
    elif config.draft_block is not None:
        raise UsageError(f"draft_block is {config.draft_block}, but {spec.name!r} has no block; leave it out.")
    elif config.draft_window is not None:
        raise UsageError(f"draft_window is {config.draft_window}, but {spec.name!r} has no layers; leave it out.")
    request = DrafterRequest(
        target,
        path,
        config.dtype,
        pick_draft_kv(config.draft_kv, device),
        config.max_context,
        config.draft_causal,
        config.draft_block,
        config.tap_shift,
        config.draft_window,
    )
    return drafters.load(spec)(request)


def draft_architecture(path: Path) -> str:
    """What kind of draft a file or directory says it holds."""
    if path.is_dir() or path.suffix == ".safetensors":
        names = SafetensorsDirectory.open(path).config.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise FileError(
                f"{path.name}: its config.json names no architecture; a DFlash draft directory was expected."
            )
        return names[0]
    return GGUFFile.open(path).architecture


def fingerprint(path: Path) -> str:
    """16 hex digits of the SHA-256 over a file's size and its first MiB: names a file without reading it all."""
    with path.open("rb") as file:
        head = file.read(FINGERPRINT_BYTES)
    return hashlib.sha256(str(path.stat().st_size).encode() + head).hexdigest()[:16]
