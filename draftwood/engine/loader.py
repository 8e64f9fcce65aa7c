"""From a config to a target, its tokenizer and a drafter."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from draftwood.cache.registry import check_width, kv_pair
from draftwood.cache.spec import KVSpec
from draftwood.decode.drafters import registry as drafters
from draftwood.decode.drafters.base import Drafter, DrafterRequest
from draftwood.engine.config import EngineConfig
from draftwood.engine.sources import open_draft
from draftwood.errors import DeviceError, UsageError
from draftwood.formats.header import ModelSource
from draftwood.kernels.linear.floats import cpu_has_bf16
from draftwood.layers.weights import Weights
from draftwood.models.base import Model
from draftwood.models.buffers import loaded
from draftwood.models.registry import architecture
from draftwood.models.spec import ModelSpec
from draftwood.text.tokenizer import Tokenizer

AUTO_KV = {"cpu": "f32", "cuda": "f16"}
AUTO_DRAFT_KV = {"cpu": "f32", "cuda": "q8_0"}
"""On a CPU decoding q8_0 rows costs a small draft more time than their bytes; rounding there can cost guesses only."""


@dataclass(frozen=True)
class LoadedTarget:
    """A target on its device, with what was read beside it. weight_forms: form -> share of the GGUF bytes."""

    model: Model
    tokenizer: Tokenizer | None
    source: ModelSource
    fingerprint: str
    weight_forms: dict[str, float]

    @property
    def name(self) -> str:
        """What it is called in reports and messages."""
        return self.source.path.name


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


def load_target(config: EngineConfig, device: str, source: ModelSource) -> LoadedTarget:
    """Check and load the target that was opened; the config is settled (`planning.prepare`)."""
    module = architecture(source)
    spec = module.read_spec(source)
    check_width(pick_kv(config.kv, device), spec.head_dim)
    if device == "cpu":
        _check_memory(source, spec, config.dtype)
    weights = Weights(source, device, config.dtype, layout=config.weights, table=config.token_table)
    model = module.build(spec, weights)
    has_text = source.get("tokenizer.ggml.tokens") is not None
    total = sum(weights.forms.values())
    return LoadedTarget(
        model,
        Tokenizer.from_metadata(source.metadata) if has_text else None,
        source,
        source.fingerprint,
        {form: size / total for form, size in weights.forms.items()},
    )


def check_assumable(source: ModelSource, device: str) -> None:
    """A UsageError where an assumed acceptance could be taken for a measured one, or has nothing to time."""
    if not source.synthetic:
        raise UsageError(
            f"an acceptance can be assumed for made-up weights only, and those of {source.path.name[:60]} are real; "
            "leave --assume-acceptance out, or name a synthetic: target."
        )
    if device == "cpu":
        raise UsageError(
            "an acceptance can be assumed in rounds captured on a GPU only, and this is a CPU; leave "
            "--assume-acceptance out."
        )


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _check_memory(source: ModelSource, spec: ModelSpec, dtype: str) -> None:
    """A DeviceError for a target that cannot lie in this machine's memory: without it the system ends the process.

    Every form on a CPU holds a float copy of each matrix.
    """
    matrices = [info for info in loaded(source.tensors.values(), spec.layers) if len(info.shape) == 2]
    wide = dtype == "float32" or (dtype == "auto" and not cpu_has_bf16())
    needed = (4 if wide else 2) * sum(math.prod(info.shape) for info in matrices)
    if needed > machine_memory():
        raise DeviceError(
            f"{source.path.name[:60]} takes {needed / 2**30:.1f} GiB on a CPU and this machine has "
            f"{machine_memory() / 2**30:.1f}; take a smaller model, or a machine with a GPU."
        )


def load_drafter(config: EngineConfig, target: Model, device: str) -> Drafter:
    """The drafter that `config.draft` names; plain decoding's when there is none."""
    spec = drafters.named_drafter(config.draft or "none")
    source = None
    if spec is None:
        if config.draft is None:
            raise UsageError("no draft was given; use a draft file or 'lookup'.")
        source = open_draft(config.draft)
        spec = drafters.drafter_of_architecture(source.path, source.architecture)
    elif config.draft_block is not None:
        raise UsageError(f"draft_block is {config.draft_block}, but {spec.name!r} has no block; leave it out.")
    elif config.draft_window is not None:
        raise UsageError(f"draft_window is {config.draft_window}, but {spec.name!r} has no layers; leave it out.")
    request = DrafterRequest(
        target,
        source,
        config.dtype,
        pick_draft_kv(config.draft_kv, device),
        config.max_context,
        config.draft_causal,
        config.draft_block,
        config.tap_shift,
        config.draft_window,
        config.weights,
    )
    return drafters.load(spec)(request)
