"""Bytes of a mapped file on their way to a GPU.

The driver copies from pageable memory by one thread, which then also waits for every page of the file, and it may make
the mapping's pages private, which is a copy of the file in the host's memory. So a few threads read slabs into pinned
memory, and the GPU fetches one while the next is read.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

SLAB = 1 << 25
"""Bytes that are read before they are sent; two slabs are kept."""

READERS = 4


class Transfer:
    """Two slabs of memory, pinned unless the device is a CPU, as in tests. For one thread at a time."""

    def __init__(self, device: str, slab: int = SLAB) -> None:
        import torch

        self._device, self._size = device, slab
        pinned = device != "cpu"
        self._slabs = [torch.empty(slab, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._sent = [torch.cuda.Event() for _ in self._slabs] if pinned else []
        self._readers = ThreadPoolExecutor(READERS, "draftwood-read")

    def send(self, stored: npt.NDArray[np.uint8]) -> Tensor:
        """A copy on the device, in order with what it is asked to do next."""
        import torch

        out = torch.empty(stored.shape, dtype=torch.uint8, device=self._device)
        source, target = stored.reshape(-1), out.view(-1)
        for number, first in enumerate(range(0, len(source), self._size)):
            part = source[first : first + self._size]
            place = number % len(self._slabs)
            if self._sent:
                self._sent[place].synchronize()
            slab = self._slabs[place][: len(part)]
            self._read(part, slab.numpy())
            target[first : first + len(part)].copy_(slab, non_blocking=True)
            if self._sent:
                self._sent[place].record()
        return out

    def _read(self, part: npt.NDArray[np.uint8], slab: npt.NDArray[np.uint8]) -> None:
        step = -(-len(part) // READERS)
        shares = [slice(first, first + step) for first in range(0, len(part), step)]
        list(self._readers.map(lambda share: np.copyto(slab[share], part[share]), shares))


@cache
def transfer_to(device: str) -> Transfer:
    """The one of a device."""
    return Transfer(device)
