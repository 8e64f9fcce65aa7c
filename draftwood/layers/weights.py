"""From tensor names to layers: the one place where a model's tensors are read, checked and put on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from draftwood.errors import FormatError
from draftwood.formats.ggml import BlockType
from draftwood.formats.source import TensorInfo, TensorSource
from draftwood.kernels.dequant import dequantise
from draftwood.kernels.linear import LinearRequest, join_linear, load_linear
from draftwood.kernels.operand import load_operands
from draftwood.layers.embedding import Embedding
from draftwood.layers.linear import Linear, Projection


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix as its source has it.

    raw: its bytes uint8 [N, row bytes] on the device that it is given, read or made at each call. scale: the optional
    factor of its products (SPEC-qwen35 3.2).
    """

    raw: Callable[[str], Tensor]
    block_type: BlockType
    in_features: int
    scale: float | None

    def rows(self, ids: Tensor) -> StoredMatrix:
        """Some of its rows, in the order of ids int64 [n]: exact, as a row is a number of whole blocks."""
        chosen = self.raw("cpu")[ids.cpu()]
        return StoredMatrix(chosen.to, self.block_type, self.in_features, self.scale)


class Weights:
    """The tensors of a source, on their way to a device ("cpu" or "cuda") in a dtype ("auto", "float32", "bfloat16").

    exact, layout: see `LinearRequest`. table: where the token table lies, "device", or "host" for pinned memory that a
    GPU reads it from.
    """

    def __init__(
        self,
        source: TensorSource,
        device: str,
        dtype: str,
        exact: bool = True,
        layout: str = "fast",
        table: str = "device",
    ) -> None:
        self.source, self.device, self.dtype, self.exact = source, device, dtype, exact
        self.layout, self.table = layout, table
        self.forms: dict[str, int] = {}
        # On a GPU the matrices of every other dtype take float32 rows, as on a CPU.
        self.operands = load_operands(device if dtype == "auto" else "cpu")

    def has(self, name: str) -> bool:
        """Whether the source has this tensor."""
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

    def dense(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A small tensor (norms, convolutions) as float32 on the device."""
        info = self.info(name, shape)
        return dequantise(self.source.tensor(name, self.device), info.block_type).reshape(shape)

    def linear(self, name: str, out_features: int, in_features: int) -> Linear:
        """One matrix [out_features, in_features]; `name` without its `.weight`."""
        return Linear(self.projection([(name, out_features)], in_features))

    def projection(self, matrices: list[tuple[str, int]], in_features: int) -> Projection:
        """Several matrices with the same input, given as (name without `.weight`, out_features).

        Neighbours of one block type become one matrix, so that one product serves them.
        """
        return self.load([self.stored(name, out, in_features) for name, out in matrices])

    def stored(self, name: str, out_features: int, in_features: int) -> StoredMatrix:
        """One matrix as the source has it; `name` without its `.weight`."""
        info = self.info(f"{name}.weight", (out_features, in_features))
        raw = partial(self.source.tensor, info.name)
        return StoredMatrix(raw, info.block_type, in_features, self._scale(name))

    def load(self, matrices: list[StoredMatrix]) -> Projection:
        """Matrices with the same input, put on the device."""
        parts = []
        for block_type, members in groupby(matrices, key=lambda matrix: matrix.block_type):
            run = list(members)
            pieces = [matrix.raw(self.device) for matrix in run]
            rows = [len(piece) for piece in pieces]
            raw = pieces.pop() if len(pieces) == 1 else torch.cat(pieces)
            del pieces
            size = len(raw), run[0].in_features
            weight = load_linear(raw, self._request(block_type, *size))
            self.forms[weight.form] = self.forms.get(weight.form, 0) + raw.nbytes
            parts.append((weight, rows))
        joined = join_linear([weight for weight, _ in parts]) if len(parts) > 1 else None
        if joined is not None:
            parts = [(joined, [count for _, rows in parts for count in rows])]
        return Projection(parts, [matrix.scale for matrix in matrices])

    def embedding(self, name: str, rows: int, width: int) -> Embedding:
        """A token table [rows, width], kept in its GGUF bytes."""
        info = self.info(name, (rows, width))
        raw = self.source.tensor(name, self.device)
        if self.table == "host" and self.device != "cpu":
            # By way of the device, where made-up weights are drawn fastest.
            raw = torch.empty(raw.shape, dtype=raw.dtype, pin_memory=True).copy_(raw)
        return Embedding(raw, info.block_type, self.device)

    def _request(self, block_type: BlockType, out_features: int, in_features: int) -> LinearRequest:
        return LinearRequest(
            block_type, out_features, in_features, self.device, self.dtype, self.exact, layout=self.layout
        )

    def _scale(self, name: str) -> float | None:
        """The optional per-tensor factor of a matrix product (SPEC-qwen35 3.2)."""
        for key in (f"{name}.scale", f"{name}.weight.scale"):
            if self.has(key):
                return float(self.dense(key, (1,)))
        return None
