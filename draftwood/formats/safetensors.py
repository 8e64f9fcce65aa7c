"""A directory with `config.json` and safetensors weights, single or sharded, mapped into memory.

The `safetensors` library checks every header (sizes, offsets, overlaps, JSON) before anything here relies on
it. It has no zero-copy bytes for numpy, which also lacks bfloat16, so the views are made from the checked
offsets.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from draftwood.errors import FileError, FormatError
from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.formats.source import (
    TensorInfo,
    UnsupportedTensorInfo,
    map_file,
    on_device,
    quoted,
    shown,
    whole_numbers,
)

if TYPE_CHECKING:
    from torch import Tensor

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class SafetensorsDirectory:
    """The weights and the configuration of one model directory. A `TensorSource`."""

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        tensors: dict[str, TensorInfo],
        data: dict[str, npt.NDArray[np.uint8]],
    ) -> None:
        self.path = path
        self.config = config
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self._bytes = data

    @classmethod
    def open(cls, path: str | Path) -> SafetensorsDirectory:
        """Open a directory, or one .safetensors file that has its config.json beside it.

        A directory holds `model.safetensors`, or shards and `model.safetensors.index.json`. Naming one of the
        shards opens all of them. FileError for a missing file, FormatError for a damaged one. Tensors that
        are not F32, F16 or BF16 are refused when they are used.
        """
        path = Path(path)
        if path.is_dir():
            directory, named = path, None
        elif path.is_file():
            directory, named = path.parent, path
        else:
            raise FileError(f"{shown(path)} does not exist: check the path, or fetch the model first.")
        config = _read_json(directory / _CONFIG)
        shards = _shards(directory, named)
        tensors: dict[str, TensorInfo] = {}
        data: dict[str, npt.NDArray[np.uint8]] = {}
        for shard, names in shards.items():
            found = _read_shard(shard)
            for name in found if names is None else names:
                if name not in found:
                    raise FormatError(
                        f"{shown(shard)} does not hold tensor {quoted(name)} that {_INDEX} places there: "
                        "download the directory again."
                    )
                tensors[name], data[name] = found[name]
        return cls(path, config, tensors, data)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor, uint8 [*shape[:-1], row_bytes]: a view of the (privately) mapped
        file.

        KeyError for an unknown name, UnsupportedModelError for a dtype other than F32, F16 and BF16.
        """
        info = self.tensors[name]
        return self._bytes[name].reshape(*info.shape[:-1], info.block_type.row_bytes(info.shape[-1]))

    def tensor(self, name: str, device: str) -> Tensor:
        """See `TensorSource.tensor`; the errors of `raw`."""
        return on_device(self.raw(name), device)

    @property
    def architecture(self) -> str:
        """The first of its config's `architectures`; FormatError without one."""
        names = self.config.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise FormatError(
                f"{shown(self.path)}: its {_CONFIG} names no architecture; a DFlash draft directory was expected."
            )
        return names[0]

    def whole_numbers(self, name: str) -> npt.NDArray[np.int64]:
        """The values of a tensor of whole numbers (I32 or I64); KeyError for an unknown name, FormatError for another
        dtype."""
        return whole_numbers(self.path, self.tensors[name], self._bytes[name])


def _shards(directory: Path, named: Path | None) -> dict[Path, list[str] | None]:
    """The files to read and the tensors to take from each (None: all)."""
    index = directory / _INDEX
    if named is None and (directory / _SINGLE).is_file():
        return {directory / _SINGLE: None}
    if named is not None and not (named.name == _INDEX or (index.is_file() and named.name in _placed(index))):
        return {named: None}
    if not index.is_file():
        raise FileError(f"{shown(directory)} holds neither {_SINGLE} nor {_INDEX}: put the weights beside {_CONFIG}.")
    placed = _placed(index)
    for file in placed:
        if not (directory / file).is_file():
            raise FileError(f"{shown(directory / file)} is missing: put all {len(placed)} shards in one directory.")
    return {directory / file: names for file, names in placed.items()}


def _placed(index: Path) -> dict[str, list[str]]:
    """Tensor names by file name, from the index."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{shown(index)} has no weight_map: download it again.")
    placed: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        # A file name with a folder in it could point anywhere on the user's disk.
        if not isinstance(file, str) or Path(file).name != file:
            raise FormatError(f"{shown(index)} places tensor {quoted(name)} outside its directory: download it again.")
        placed.setdefault(file, []).append(name)
    return placed


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileError(f"{shown(path)} does not exist: a safetensors model needs it beside its weights.") from None
    except OSError as error:
        raise FileError(
            f"{shown(path)} cannot be read ({error.strerror}): check the file and its permissions."
        ) from None
    except (ValueError, RecursionError):
        raise FormatError(
            f"{shown(path)} is not valid JSON: it is truncated or damaged, so download it again."
        ) from None
    if not isinstance(value, dict):
        raise FormatError(f"{shown(path)} does not hold a JSON object: download it again.")
    return value


def _read_shard(path: Path) -> dict[str, tuple[TensorInfo, npt.NDArray[np.uint8]]]:
    """All tensors of one file with a flat uint8 view of their bytes."""
    buffer = map_file(path)
    try:
        with safe_open(str(path), framework="numpy"):
            pass
    except SafetensorError:
        raise FormatError(
            f"{shown(path)} is not a sound safetensors file (truncated or damaged): download it again."
        ) from None
    (length,) = struct.unpack_from("<Q", buffer)
    start = 8 + length
    header = json.loads(buffer[8:start])
    data = np.frombuffer(buffer, dtype=np.uint8)
    found: dict[str, tuple[TensorInfo, npt.NDArray[np.uint8]]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"]) or (1,)
        dtype = entry["dtype"]
        if dtype in ("F32", "F16", "BF16"):
            info = TensorInfo(name, shape, BLOCK_TYPES[dtype], end - begin)
        else:
            info = UnsupportedTensorInfo(path, name, shape, dtype, end - begin)
        found[name] = (info, data[start + begin : start + end])
    return found
