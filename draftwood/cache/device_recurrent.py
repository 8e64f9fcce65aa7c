"""The state of one gated delta net layer on a GPU, in place: kernels read trees and paths on the device, so that a
round can be captured in a graph. The tape is as in `recurrent`, with the window before its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from draftwood.batch import MAX_ROWS
from draftwood.cache.allocation import zeros
from draftwood.cache.base import Keep, LayerState
from draftwood.cache.buffers import recurrent_buffers, tape_buffers
from draftwood.cache.recurrent import DeltaWeights
from draftwood.cache.step import DecodeStep
from draftwood.kernels.delta_rule import DeltaLayer, DeltaShape, load_device_form
from draftwood.kernels.scratch import slot_shape


class DeviceRecurrentState(LayerState):
    """Float32 state [Hv, K, V], window [3, F] and tape of one layer and sequence. rows: of a decode pass, at most."""

    def __init__(self, shape: DeltaShape, weights: DeltaWeights, device: str, rows: int = MAX_ROWS) -> None:
        self.shape, self._device, self._form = shape, device, load_device_form(device)
        sizes = shape.value_heads, shape.key_dim, shape.value_dim, shape.channels, len(weights.conv)
        self.state, self.window = (zeros(buffer, device) for buffer in recurrent_buffers(*sizes))
        tape = str(weights.tape).removeprefix("torch.")
        raw, decay, beta = (
            zeros(buffer, device)
            for buffer in tape_buffers(rows, shape.value_heads, shape.channels, tape, len(weights.conv) - 1)
        )
        # Now, beside what stays as long: made with the first round they would lie in the midst of a prompt's scratch.
        self._slots = _slots(shape, device, rows)
        self.layer = DeltaLayer(weights.conv, weights.rate, weights.bias, self.state, self.window, raw, decay, beta)
        self.length = 0

    def prefill(self, raw: Tensor, a: Tensor, b: Tensor, count: int) -> Tensor:
        """See RecurrentState."""
        self.length += count
        return self._form.prefill(raw, a, b, self.layer, self.shape, count)

    def stage(self, raw: Tensor, a: Tensor, b: Tensor, step: DecodeStep) -> Tensor:
        """See RecurrentState."""
        visits = self._form.stage_nodes(raw, a, b, step.plan, self.layer, self.shape)
        return self._form.tree_rule(visits, step.plan, self.state, self._slots, self.shape)

    def commit(self, path: Tensor, count: int) -> None:
        """Replay the nodes `path[:count]` from the tape."""
        self.keep_together([self])(path, torch.tensor(count, device=path.device), path)
        self.length += count

    @classmethod
    def keep_together(cls, states: Sequence[LayerState]) -> Keep:
        """One launch for the layers of a sequence."""
        own = cast(Sequence[DeviceRecurrentState], states)
        form, shape, tape = own[0]._form, own[0].shape, own[0].layer.raw.dtype
        table = form.layer_table([state.layer for state in own])

        def keep(path: Tensor, count: Tensor, committed: Tensor) -> None:
            form.commit_nodes(table, path, count, shape, tape)

        return keep

    def truncate(self, length: int) -> None:
        """Only to its own length, or to nothing."""
        if length == 0:
            self.state.zero_()
            self.window.zero_()
            self.length = 0
        elif length != self.length:
            raise ValueError(
                f"a recurrent state at {self.length} tokens cannot be truncated to {length}; restore a snapshot"
            )

    def snapshot(self) -> Any:
        """Copies of state and window, and the length."""
        return self.length, self.state.clone(), self.window.clone()

    def restore(self, snapshot: Any) -> None:
        """Return to a snapshot."""
        self.length, state, window = snapshot
        self.state.copy_(state)
        self.window.copy_(window)

    def mark(self) -> Any:
        """A snapshot in the host's memory, so that the device needs room for one state only."""
        return self.length, self.state.cpu(), self.window.cpu()

    def fill_random(self, length: int, seed: int) -> None:
        """See LayerState."""
        generator = torch.Generator(self._device).manual_seed(seed)
        self.state.normal_(generator=generator)
        self.window.normal_(generator=generator)
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of state, window and tape."""
        return sum(t.nbytes for t in (self.state, self.window, self.layer.raw, self.layer.decay, self.layer.beta))


_SLOTS: WeakValueDictionary[tuple[DeltaShape, str, int], Tensor] = WeakValueDictionary()


def _slots(shape: DeltaShape, device: str, rows: int) -> Tensor:
    """Scratch for the states at a tree's branches: one for all layers, as long as one of their states lives.

    What outlived its model would keep the whole block of torch's pool that it was cut from (`engine.memory`).
    """
    made = _SLOTS.get((shape, device, rows))
    if made is None:
        made = torch.empty(slot_shape(rows, shape.value_heads, shape.key_dim, shape.value_dim), device=device)
        _SLOTS[shape, device, rows] = made
    return made
