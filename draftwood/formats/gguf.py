"""GGUF files, version 2 and 3, little endian, single or split, mapped into memory.

Layout (SPEC-qwen35 section 3.1): magic, version, counts, key/value pairs, tensor table, padding, data. The
header is walked here, with the `gguf` library's constants, for two reasons. Every count and length is
compared with what is left of the file *before* anything of that size is made, so a damaged file ends in one
sentence. And the library's own reader makes several array objects per list element: 9.8 s for a Qwen3.5
vocabulary (248,320 tokens, 247,556 merges), against 0.13 s here. Tests compare the two readers.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGUFValueType
from gguf.gguf_reader import READER_SUPPORTED_VERSIONS

from draftwood.errors import FileError, FormatError
from draftwood.formats.ggml import BLOCK_TYPES, block_type_of_code
from draftwood.formats.header import ModelSource
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

# Real headers end within 20 MB. The limits keep a damaged length in a file of many gigabytes from becoming an
# allocation of many gigabytes: a list needs eight bytes for an element that takes one in the file.
_MAX_HEADER_BYTES = 1 << 27
_MAX_ARRAY_LENGTH = 1 << 24
_MAX_DIMS = 4

_FINGERPRINT_BYTES = 1 << 20

_SCALARS: dict[int, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("?"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}

_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from

_SHARD_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class GGUFFile(ModelSource):
    """An open GGUF file: metadata and tensors of all its shards."""

    def __init__(self, path: Path, shards: list[_Shard]) -> None:
        self.files: tuple[Path, ...] = tuple(shard.path for shard in shards)
        self._bytes: dict[str, npt.NDArray[np.uint8]] = {}
        tensors: dict[str, TensorInfo] = {}
        for shard in shards:
            for info, start in shard.tensors:
                if info.name in tensors:
                    raise FormatError(
                        f"{shown(shard.path)} holds tensor {quoted(info.name)} a second time: "
                        "the file is damaged or the shards do not belong together, so download it again."
                    )
                tensors[info.name] = info
                self._bytes[info.name] = shard.data[start : start + info.nbytes]
        super().__init__(path, MappingProxyType(shards[0].metadata), MappingProxyType(tensors))

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Open a GGUF file, or all shards of a split one given any of them.

        The tensor data is mapped, not read; `raw` hands out views of it. FileError if a file cannot be
        opened, FormatError if it is not a sound GGUF file.
        """
        path = Path(path)
        opened = _Shard(path)
        count = opened.metadata.get("split.count", 1)
        if not isinstance(count, int) or count <= 1:
            return cls(path, [opened])
        name = _SHARD_NAME.fullmatch(path.name)
        if name is None or int(name["count"]) != count:
            raise FormatError(
                f"{shown(path)} is one of {count} shards but is not named so: "
                f"shards must keep their names, NAME-00001-of-{count:05d}.gguf and so on, in one directory."
            )
        shards: list[_Shard] = []
        for number in range(1, count + 1):
            shard_path = path.with_name(f"{name['stem']}-{number:05d}-of-{count:05d}.gguf")
            if not shard_path.exists():
                raise FileError(
                    f"{shown(shard_path)} is missing: put all {count} shards of the model in one directory."
                )
            shard = opened if shard_path == path else _Shard(shard_path)
            said = shard.metadata.get("split.no"), shard.metadata.get("split.count")
            if said != (number - 1, count):
                raise FormatError(
                    f"{shown(shard_path)} says it is shard {_plain(said[0])} (from 0) of "
                    f"{_plain(said[1])}, not the one its name says: download it again."
                )
            shards.append(shard)
        found = sum(len(shard.tensors) for shard in shards)
        expected = shards[0].metadata.get("split.tensors.count", found)
        if found != expected:
            raise FormatError(
                f"{shown(path)}: the {count} shards hold {found} tensors, but the first announces "
                f"{_plain(expected)}: they do not belong together, so download them again."
            )
        return cls(path, shards)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor, uint8 [*shape[:-1], row_bytes]: a view of the mapped file.

        The mapping is private (copy on write), so torch takes the view without a warning and no write reaches
        the file. KeyError for an unknown name, UnsupportedModelError for an unsupported block type.
        """
        info = self.tensors[name]
        return self._bytes[name].reshape(*info.shape[:-1], info.block_type.row_bytes(info.shape[-1]))

    def tensor(self, name: str, device: str) -> Tensor:
        """See `TensorSource.tensor`; the errors of `raw`."""
        return on_device(self.raw(name), device)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over the opened file's size and its first MiB."""
        with self.path.open("rb") as file:
            head = file.read(_FINGERPRINT_BYTES)
        return hashlib.sha256(str(self.path.stat().st_size).encode() + head).hexdigest()[:16]

    def whole_numbers(self, name: str) -> npt.NDArray[np.int64]:
        """The values of a tensor of whole numbers (I32 or I64); KeyError for an unknown name, FormatError for another
        type."""
        return whole_numbers(self.path, self.tensors[name], self._bytes[name])


def _plain(value: Any) -> str:
    return str(value) if isinstance(value, int) else "an unknown number"


class _Shard:
    """One file: `metadata`, `data` (all its bytes) and `tensors` with the start of each in `data`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        buffer = map_file(path)
        self.data: npt.NDArray[np.uint8] = np.frombuffer(buffer, dtype=np.uint8)
        header = _Header(path, buffer)
        tensor_count, pair_count = header.counts()
        self.metadata = header.metadata(pair_count)
        self.tensors = header.tensor_table(tensor_count, self.metadata)


class _Header:
    """A cursor over the header that never moves past the file's end or the header limit."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self._path = path
        self._buffer = buffer
        self._size = len(buffer)
        self._end = min(self._size, _MAX_HEADER_BYTES)
        self._at = 0

    def counts(self) -> tuple[int, int]:
        """(tensors, key/value pairs), after checking magic, byte order and version."""
        if self._size < 4 or self._u32("its magic") != GGUF_MAGIC:
            raise FormatError(
                f"{shown(self._path)} does not start with the letters GGUF, so it is not a GGUF file: "
                "check the name, or download it again."
            )
        version = self._u32("its version")
        if version & 0xFFFF == 0:
            raise FormatError(
                f"{shown(self._path)} is a big-endian GGUF file and draftwood reads little-endian ones: "
                "convert it, or download a little-endian one."
            )
        if version not in READER_SUPPORTED_VERSIONS:
            raise FormatError(
                f"{shown(self._path)} is a GGUF file of version {version} and draftwood reads 2 and 3: "
                "convert the model again with a current converter."
            )
        tensor_count = self._u64("its counts")
        pair_count = self._u64("its counts")
        # The smallest entry: name length, dimension count, type and offset; key length, type and one byte.
        if tensor_count * 24 + pair_count * 13 > self._end - self._at:
            raise self._damaged(f"announces {tensor_count} tensors and {pair_count} keys, more than fit into it")
        return tensor_count, pair_count

    def metadata(self, count: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        for _ in range(count):
            key = self._name("a key")
            if key in pairs:
                raise self._damaged(f"holds the key {quoted(key)} twice")
            pairs[key] = self._value(key)
        return pairs

    def tensor_table(self, count: int, metadata: dict[str, Any]) -> list[tuple[TensorInfo, int]]:
        """All tensors and the file offset of their first byte, checked against the file's size."""
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 31:
            raise self._damaged("has a general.alignment that is no power of two")
        table: list[tuple[TensorInfo, int]] = []
        names: set[str] = set()
        for _ in range(count):
            info, offset = self._tensor_info()
            if info.name in names:
                raise self._damaged(f"holds tensor {quoted(info.name)} twice")
            if offset % alignment:
                raise self._damaged(
                    f"places tensor {quoted(info.name)} at an offset that is no multiple of {alignment}"
                )
            names.add(info.name)
            table.append((info, offset))
        start = -(-self._at // alignment) * alignment
        end = 0
        for info, offset in sorted(table, key=lambda entry: entry[1]):
            if offset < end:
                raise self._damaged(f"places tensor {quoted(info.name)} inside another one")
            end = offset + info.nbytes
            if start + end > self._size:
                raise FormatError(
                    f"{shown(self._path)} has {self._size} bytes but tensor {quoted(info.name)} ends at byte "
                    f"{start + end}: the file is truncated or damaged, so download it again."
                )
        return [(info, start + offset) for info, offset in table]

    def _tensor_info(self) -> tuple[TensorInfo, int]:
        name = self._name("a tensor name")
        n_dims = self._u32("the tensor table")
        if n_dims > _MAX_DIMS:
            raise self._damaged(f"gives tensor {quoted(name)} {n_dims} dimensions, more than {_MAX_DIMS}")
        shape = tuple(self._u64("the tensor table") for _ in range(n_dims))[::-1] or (1,)
        code = self._u32("the tensor table")
        offset = self._u64("the tensor table")
        elements = 1
        for dim in shape:
            elements *= dim
        # Python integers do not wrap, and no type stores more than 32 weights in a byte.
        if elements == 0 or elements > 32 * self._size:
            raise self._damaged(f"gives tensor {quoted(name)} the impossible shape {_dims(shape)}")
        block_type = block_type_of_code(code)
        if block_type is None:
            return UnsupportedTensorInfo(self._path, name, shape, f"type {code}", 0), offset
        rows = elements // shape[-1]
        if shape[-1] % block_type.block_size:
            raise self._damaged(
                f"stores tensor {quoted(name)} as {block_type.name}, but its rows of {shape[-1]} weights "
                f"are no whole number of blocks of {block_type.block_size}"
            )
        nbytes = rows * block_type.row_bytes(shape[-1])
        if block_type.name not in BLOCK_TYPES:
            return UnsupportedTensorInfo(self._path, name, shape, block_type.name, nbytes), offset
        return TensorInfo(name, shape, block_type, nbytes), offset

    def _value(self, key: str) -> Any:
        kind = self._u32(f"key {quoted(key)}")
        if kind == GGUFValueType.STRING:
            return self._strings(1, key)[0]
        if kind in _SCALARS:
            return self._numbers(_SCALARS[kind], 1, key)[0]
        if kind != GGUFValueType.ARRAY:
            raise self._damaged(f"gives key {quoted(key)} the unknown value type {kind}")
        kind = self._u32(f"key {quoted(key)}")
        count = self._u64(f"key {quoted(key)}")
        if kind != GGUFValueType.STRING and kind not in _SCALARS:
            raise self._damaged(f"makes key {quoted(key)} a list of the unknown type {kind}")
        if count > _MAX_ARRAY_LENGTH:
            raise self._damaged(f"makes key {quoted(key)} a list of {count} values, more than {_MAX_ARRAY_LENGTH}")
        return self._strings(count, key) if kind == GGUFValueType.STRING else self._numbers(_SCALARS[kind], count, key)

    def _numbers(self, kind: np.dtype[Any], count: int, key: str) -> list[Any]:
        start = self._skip(count * kind.itemsize, f"key {quoted(key)}")
        if kind == np.bool_:
            return [byte != 0 for byte in self._buffer[start : self._at]]
        values: list[Any] = np.frombuffer(self._buffer, dtype=kind, count=count, offset=start).tolist()
        return values

    def _strings(self, count: int, key: str) -> list[str]:
        # A loop over half a million strings: local names and no call per string but the decoding.
        buffer, at, end = self._buffer, self._at, self._end
        if count * 8 > end - at:
            raise self._ends_inside(f"key {quoted(key)}")
        values: list[str] = []
        for _ in range(count):
            stop = at + 8
            if stop > end:
                raise self._ends_inside(f"key {quoted(key)}")
            stop += _U64(buffer, at)[0]
            if stop > end:
                raise self._ends_inside(f"key {quoted(key)}")
            # Tokens of some public files are no valid UTF-8; one bad token must not cost the user the model.
            values.append(buffer[at + 8 : stop].decode("utf-8", "replace"))
            at = stop
        self._at = at
        return values

    def _name(self, what: str) -> str:
        length = self._u64(what)
        start = self._skip(length, what)
        try:
            return self._buffer[start : self._at].decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"holds {what} that is not text") from None

    def _u32(self, what: str) -> int:
        value: int = _U32(self._buffer, self._skip(4, what))[0]
        return value

    def _u64(self, what: str) -> int:
        value: int = _U64(self._buffer, self._skip(8, what))[0]
        return value

    def _skip(self, length: int, what: str) -> int:
        """Move over `length` bytes of the header and return where they start."""
        start = self._at
        if length > self._end - start:
            raise self._ends_inside(what)
        self._at = start + length
        return start

    def _ends_inside(self, what: str) -> FormatError:
        return self._damaged(f"ends inside {what} (the file has {self._size} bytes)")

    def _damaged(self, found: str) -> FormatError:
        return FormatError(f"{shown(self._path)} {found}: it is truncated or damaged, so download it again.")


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(str(dim) for dim in shape)
