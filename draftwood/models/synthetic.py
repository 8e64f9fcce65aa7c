"""Made-up weights in the shapes of a known model, drawn on the device where they are wanted.

A tensor's bytes follow from the seed, the architecture and its name alone, so a model that was written to a file is the
one in memory, and a variant with fewer layers has the first ones of the whole.
They are random, and as far as kernels can tell like trained ones: every code and scale is used, a matrix keeps the size
of what it multiplies, norms are near 1, and the delta nets forget as fast as freshly initialised ones
(SPEC-draft-training: A from 1 to 16, softplus of the bias from 1e-3 to 1e-1). What the model writes means nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from draftwood.formats.header import SYNTHETIC_KEY, ModelHeader, ModelSource
from draftwood.formats.source import TensorInfo
from draftwood.models.buffers import HEAD, TABLE

if TYPE_CHECKING:
    from torch import Tensor

SEED = 0

LOGIT_SPREAD = 4.0
"""Standard deviation of the logits: the likeliest of 248,320 tokens then has a probability of about 0.1."""

_PARAMETERS = {
    "ssm_a": (-8.5, 2.1),
    "ssm_dt.bias": (-4.6, 1.3),
    "ssm_conv1d.weight": (0.0, 0.5),
}
"""Mean and standard deviation of what is neither a norm nor a matrix; no value is further away than 3.5 of these."""

_NORMS = (1.0, 0.1)


class SyntheticModel(ModelSource):
    """A header and the weights that are made up for it. metadata: keys beside the header's, as of its tokenizer."""

    def __init__(self, header: ModelHeader, metadata: Mapping[str, Any] | None = None) -> None:
        own = {"general.name": f"{header.path.name} (random weights)", SYNTHETIC_KEY: True}
        super().__init__(header.path, {**header.metadata, **own, **(metadata or {})}, header.tensors)

    def tensor(self, name: str, device: str) -> Tensor:
        """Drawn anew at each call; see `TensorSource.tensor`."""
        from draftwood.kernels.draw import draw

        info = self.tensors[name]
        mean, std = distribution(info)
        return draw(self._key(name), info.block_type, info.shape, std, device, mean)

    def _key(self, name: str) -> int:
        return int.from_bytes(_digest(f"{SEED} {self.architecture} {name}")[:8], "little")

    @property
    def fingerprint(self) -> str:
        """See `ModelSource`; of the tensors' names, shapes and types, and the seed."""
        facts = [(info.name, info.shape, info.type_name) for info in self.tensors.values()]
        return _digest(f"{SEED} {facts}").hex()[:16]


def distribution(info: TensorInfo) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's weights."""
    parts = info.name.split(".")
    stem = ".".join(parts[2:] if parts[0] == "blk" else parts)
    if stem in _PARAMETERS:
        return _PARAMETERS[stem]
    if len(info.shape) == 1:
        return _NORMS
    if stem == TABLE:
        return 0.0, 1.0
    return 0.0, (LOGIT_SPREAD if stem == HEAD else 1.0) / math.sqrt(info.shape[-1])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
