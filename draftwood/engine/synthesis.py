"""Synthetic models as files, for other engines and for trying what happens with a file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from draftwood.errors import FileError, UsageError
from draftwood.formats.gguf_writer import write_gguf
from draftwood.formats.source import shown
from draftwood.models.synthetic import SyntheticModel

_HEADER_BYTES = 1 << 24
"""Room for the metadata, most of it the vocabulary."""


def write_synthetic(
    model: SyntheticModel, path: Path, device: str, force: bool = False, begin: Callable[[str], None] = lambda _: None
) -> int:
    """Write a model as a GGUF file, drawn on the device tensor by tensor; how many bytes the file has.

    force: whether a file that is there is replaced. begin: told each tensor's name. UsageError for a file that is
    there, FileError where the file cannot be written; whatever goes wrong, nothing half-done is left.
    """
    if path.is_dir():
        raise FileError(f"{shown(path)} is a directory: name the file to write.")
    if path.exists() and not force:
        raise UsageError(f"{shown(path)} is there already; --force replaces it.")
    if not path.parent.is_dir():
        raise FileError(f"no such folder: {shown(path.parent)}; create it first.")
    needed, free = sum(info.nbytes for info in model.tensors.values()), shutil.disk_usage(path.parent).free
    if needed + _HEADER_BYTES > free:
        raise FileError(
            f"{model.path.name} takes {needed / 1e9:.2f} GB, but {shown(path.parent.absolute())} has only "
            f"{free / 1e9:.2f} GB left; free some space or name another folder."
        )

    # Pinned, and the same for every tensor: fresh memory would cost its pages anew, and the driver's copy into it.
    largest = max(info.nbytes for info in model.tensors.values())
    host = torch.empty(largest, dtype=torch.uint8, pin_memory=device != "cpu")

    def stored(name: str) -> npt.NDArray[np.uint8]:
        begin(name)
        drawn = model.tensor(name, device)
        written: npt.NDArray[np.uint8] = host[: drawn.numel()].view(drawn.shape).copy_(drawn).numpy()
        return written

    try:
        write_gguf(path, model.metadata, model.tensors.values(), stored)
    except OSError as error:
        raise FileError(f"cannot write {shown(path)}: {error.strerror}; nothing of it was kept.") from error
    return path.stat().st_size
