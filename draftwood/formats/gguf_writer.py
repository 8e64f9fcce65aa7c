"""Writing GGUF files, whole or not at all, one tensor in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from draftwood.formats.source import TensorInfo

ARCHITECTURE = "general.architecture"


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[TensorInfo],
    stored: Callable[[str], npt.NDArray[np.uint8]],
) -> None:
    """Write a file beside its place and rename it in the end; a failure or an interrupt leaves nothing behind.

    metadata: by GGUF's keys, with `general.architecture`. stored: the bytes of a tensor by its name, asked for once, in
    order. OSError where it cannot be written.
    """
    infos = list(tensors)
    with _part_of(Path(path)) as part:
        writer = GGUFWriter(part, metadata[ARCHITECTURE])
        try:
            for key, value in metadata.items():
                if key != ARCHITECTURE:  # the writer has put it first
                    writer.add_key_value(key, value, *_value_type(value))
            for info in infos:
                kind = GGMLQuantizationType[info.block_type.name]
                writer.add_tensor_info(info.name, info.shape, np.dtype(np.float32), info.nbytes, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for info in infos:
                writer.write_tensor_data(stored(info.name))
        finally:
            writer.close()


def _value_type(value: Any) -> tuple[GGUFValueType, GGUFValueType | None]:
    """How llama.cpp expects a value to be stored: whole numbers unsigned when alone and signed in lists."""
    if isinstance(value, list):
        return GGUFValueType.ARRAY, GGUFValueType.get_type(value[0])
    kind = GGUFValueType.get_type(value)
    return GGUFValueType.UINT32 if kind is GGUFValueType.INT32 else kind, None


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; renamed to it in the end, gone if anything went wrong."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
