"""Work of a GPU as a captured graph, which replays it without the host's part."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE


def capture(action: Callable[[], object], warm: bool = False, pool: _POOL_HANDLE | None = None) -> torch.cuda.CUDAGraph:
    """A graph of what an action launches, which has run before unless it is to be warmed.

    pool: memory shared with other graphs (`torch.cuda.graph_pool_handle`), of which one runs at a time.
    """
    if warm:
        action()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        action()
    return graph
