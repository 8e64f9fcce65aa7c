"""What a model says of itself, in GGUF's terms: metadata and the facts of its tensors. Torch-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from draftwood.errors import FormatError
from draftwood.formats.source import TensorInfo, quoted, shown

if TYPE_CHECKING:
    from torch import Tensor


SYNTHETIC_KEY = "draftwood.synthetic"
"""True in the metadata of models whose weights are made up; files keep it."""


class ModelHeader:
    """Metadata and tensor table, without the tensors' bytes.

    path: what was opened, or what the model is called where there is no file. tensors: by name, in file order.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
        self.path, self.metadata, self.tensors = path, metadata, tensors

    @property
    def architecture(self) -> str:
        """The value of `general.architecture`; FormatError without one."""
        value = self.require("general.architecture")
        if not isinstance(value, str):
            raise FormatError(f"{shown(self.path)}: general.architecture is not text: the file is damaged.")
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value (int, float, bool, str or a list of one of them), or `default`."""
        return self.metadata.get(key, default)

    def require(self, key: str) -> Any:
        """A metadata value; FormatError if the file does not have it."""
        if key not in self.metadata:
            raise FormatError(f"{shown(self.path)} has no metadata key {quoted(key)}: use a complete GGUF file.")
        return self.metadata[key]

    @property
    def synthetic(self) -> bool:
        """Whether its weights are made up, as it says itself."""
        return self.get(SYNTHETIC_KEY) is True

    def whole_numbers(self, name: str) -> npt.NDArray[np.int64]:
        """The values of a tensor of whole numbers; KeyError without one of that name, as in a header alone."""
        raise KeyError(name)


class ModelSource(ModelHeader, ABC):
    """A header with its tensors' bytes: a GGUF file, or what is made up in its form. A `TensorSource`."""

    @abstractmethod
    def tensor(self, name: str, device: str) -> Tensor:
        """See `TensorSource.tensor`."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits that tell this model from others, without reading it all."""
