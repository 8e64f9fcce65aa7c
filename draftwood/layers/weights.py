"""From tensor names to layers: the one place where a model's tensors are read, checked and put on the device."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from draftwood.errors import FormatError
from draftwood.formats.source import TensorInfo, TensorSource
from draftwood.kernels.dequant import dequantise
from draftwood.kernels.linear import LinearRequest, load_linear
from draftwood.layers.embedding import Embedding
from draftwood.layers.linear import Linear, Projection


class Weights:
    """The tensors of a file, on their way to a device ("cpu" or "cuda") in a dtype ("auto", "float32", "bfloat16")."""

    def __init__(self, source: TensorSource, device: str, dtype: str) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self.forms: dict[str, int] = {}

    def has(self, name: str) -> bool:
        """Whether the file has this tensor."""
        return name in self.source.tensors

    def info(self, name: str, shape: tuple[int, ...] | None = None) -> TensorInfo:
        """The tensor's facts; a FormatError where it is missing or of another shape."""
        info = self.source.tensors.get(name)
        if info is None:
            raise FormatError(
                f"{self.source.path.name} has no tensor {name!r}: the file is incomplete or of another model; "
                "download it again."
            )
        if shape is not None and tuple(info.shape) != shape:
            raise FormatError(
                f"{self.source.path.name}: tensor {name!r} has shape {tuple(info.shape)}, "
                f"{shape} was expected from the file's own metadata."
            )
        return info

    def raw(self, name: str) -> Tensor:
        """The stored bytes, uint8 [..., row bytes], on the CPU."""
        return torch.from_numpy(self.source.raw(name))

    def dense(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A small tensor (norms, convolutions) as float32 on the device."""
        info = self.info(name, shape)
        return dequantise(self.raw(name), info.block_type).reshape(shape).to(self.device)

    def linear(self, name: str, out_features: int, in_features: int) -> Linear:
        """One matrix [out_features, in_features]; `name` without its `.weight`."""
        return Linear(self.projection([(name, out_features)], in_features))

    def projection(self, matrices: list[tuple[str, int]], in_features: int) -> Projection:
        """Several matrices with the same input, given as (name without `.weight`, out_features).

        Neighbours of one block type become one matrix, so that one product serves them.
        """
        infos = [(name, out, self.info(f"{name}.weight", (out, in_features))) for name, out in matrices]
        parts = []
        for _, members in groupby(infos, key=lambda item: item[2].block_type.name):
            run = list(members)
            raw = torch.from_numpy(np.concatenate([self.source.raw(info.name) for _, _, info in run])).to(self.device)
            request = LinearRequest(run[0][2].block_type, len(raw), in_features, self.device, self.dtype)
            weight = load_linear(raw, request)
            self.forms[weight.form] = self.forms.get(weight.form, 0) + raw.nbytes
            parts.append((weight, [out for _, out, _ in run]))
        return Projection(parts, [self._scale(name) for name, _ in matrices])

    def embedding(self, name: str, rows: int, width: int) -> Embedding:
        """A token table [rows, width], kept in its GGUF bytes."""
        info = self.info(name, (rows, width))
        return Embedding(self.raw(name).to(self.device), info.block_type)

    def _scale(self, name: str) -> float | None:
        """The optional per-tensor factor of a matrix product (SPEC-qwen35 3.2)."""
        for key in (f"{name}.scale", f"{name}.weight.scale"):
            if self.has(key):
                return float(self.dense(key, (1,)))
        return None
