"""What every container of weights looks like to the rest of draftwood."""

from __future__ import annotations

import math
import mmap
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from draftwood.errors import FileError, FormatError, UnsupportedModelError
from draftwood.formats.ggml import BLOCK_TYPES, BlockType
from draftwood.formats.transfer import transfer_to

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    `shape` is in torch order (rows first; the last entry is the length of a row in weights) and never empty:
    a scalar has shape (1,). `nbytes` counts the stored bytes.
    """

    name: str
    shape: tuple[int, ...]
    block_type: BlockType
    nbytes: int

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], type_name: str) -> TensorInfo:
        """A tensor of a supported type; ValueError where its rows are no whole number of blocks."""
        kind = BLOCK_TYPES[type_name]
        return cls(name, shape, kind, math.prod(shape[:-1]) * kind.row_bytes(shape[-1]))

    @property
    def type_name(self) -> str:
        """The name of what is stored, also of a type that cannot be read as weights."""
        return self.block_type.name


class UnsupportedTensorInfo(TensorInfo):
    """A tensor stored in a type that draftwood cannot read.

    Files may carry such tensors as long as nothing needs them, so opening succeeds and reading `block_type`
    raises UnsupportedModelError.
    """

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], type_name: str, nbytes: int) -> None:
        # The base class is frozen and its generated __init__ would set block_type.
        for key, value in (
            ("path", path),
            ("name", name),
            ("shape", shape),
            ("_type_name", type_name),
            ("nbytes", nbytes),
        ):
            object.__setattr__(self, key, value)

    path: Path
    _type_name: str

    @property
    def type_name(self) -> str:
        return self._type_name

    @property
    def block_type(self) -> NoReturn:
        raise UnsupportedModelError(
            f"{shown(self.path)}: tensor {quoted(self.name)} is stored as {self.type_name}, which draftwood "
            f"cannot read: use a file in one of {', '.join(BLOCK_TYPES)}."
        )

    def __repr__(self) -> str:
        return f"UnsupportedTensorInfo(name={self.name!r}, shape={self.shape}, type_name={self.type_name!r})"


_WHOLE_NUMBERS = {"I32": "<i4", "I64": "<i8"}


def whole_numbers(path: Path, info: TensorInfo, stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The values of a tensor of I32 or I64, int64 in its shape, from its stored bytes; FormatError for another type."""
    kind = _WHOLE_NUMBERS.get(info.type_name)
    if kind is None:
        raise FormatError(
            f"{shown(path)}: tensor {quoted(info.name)} is stored as {info.type_name}, whole numbers "
            f"({' or '.join(_WHOLE_NUMBERS)}) were expected: convert the model again."
        )
    return stored.view(kind).astype(np.int64).reshape(info.shape)


class TensorSource(Protocol):
    """Named tensors: of a file, of a set of files, or of none."""

    @property
    def path(self) -> Path:
        """What was opened."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in file order."""
        ...

    def tensor(self, name: str, device: str) -> Tensor:
        """The stored bytes, uint8 [*shape[:-1], row_bytes], on the device.

        On the device where they lie already it may be a view of them: do not write to it. KeyError for a name that is
        not in `tensors`, UnsupportedModelError for an unsupported block type.
        """
        ...


def on_device(stored: npt.NDArray[np.uint8], device: str) -> Tensor:
    """Bytes of a mapped file as a tensor: a view of them on a CPU, a copy on another device."""
    import torch

    return torch.from_numpy(stored) if device == "cpu" else transfer_to(device).send(stored)


# Python names it from 3.13 on; this is its value on Linux.
_MAP_NORESERVE = 0x4000


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file privately: views of it count as writable, and no write reaches the file.

    That is what torch wants of an array it is to use without copying. On Linux nothing is reserved for those
    writes; a model larger than the machine's memory could not be mapped otherwise. FileError if the file
    cannot be opened, FormatError if it is a directory, a device or empty.
    """
    try:
        if path.is_dir():
            raise FormatError(f"{shown(path)} is a directory, not a model file: name a file inside it.")
        if not path.exists():
            raise FileError(f"{shown(path)} does not exist: check the path, or fetch the model first.")
        if not path.is_file():  # a pipe would block for ever
            raise FormatError(f"{shown(path)} is not a regular file: name a model file.")
        if path.stat().st_size == 0:
            raise FormatError(f"{shown(path)} is empty, not a model file: download it again.")
        with path.open("rb") as file:
            if platform.system() == "Linux":
                flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
                return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise FileError(
            f"{shown(path)} cannot be read ({error.strerror}): check the file and its permissions."
        ) from None


def shown(path: Path) -> str:
    """The path for a message, shortened from the left so that a sentence stays short."""
    text = str(path)
    return text if len(text) <= 72 else "..." + text[-69:]


def quoted(name: Any) -> str:
    """A name out of a file for a message: one line, printable, at most 48 characters and its quotes."""
    text = str(name)
    return ascii(text if len(text) <= 48 else text[:45] + "...")[:64]
