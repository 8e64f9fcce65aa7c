"""The state of a layer in the form that its device and KV types allow: in place and by kernels, else the reference."""

from __future__ import annotations

from draftwood.cache.base import LayerState
from draftwood.cache.codecs import has_codec
from draftwood.cache.kv import KVState
from draftwood.cache.recurrent import DeltaWeights, RecurrentState
from draftwood.cache.spec import KVSpec
from draftwood.cache.window import WindowedKVState
from draftwood.kernels._select import without_triton
from draftwood.kernels.attention import DEVICE_WIDTHS as HEAD_WIDTHS
from draftwood.kernels.delta_rule import DEVICE_WIDTHS, DeltaShape


def kv_state(
    kv: tuple[KVSpec, KVSpec], heads: int, head_dim: int, capacity: int, device: str, dtype: str = "auto"
) -> KVState:
    """An attention layer's cache."""
    kind = KVState
    if attention_kernels_serve(kv, head_dim, device, dtype):
        from draftwood.cache.device_kv import DeviceKVState

        kind = DeviceKVState
    return kind(kv, heads, head_dim, capacity, device)


def draft_state(
    kv: tuple[KVSpec, KVSpec], heads: int, head_dim: int, capacity: int, window: int | None, device: str
) -> KVState:
    """A cache for `capacity` tokens of a draft's layer that sees back `window` positions, its own included; None: all.

    Kernels store its rows where they serve; they are attended by `DeviceDraftState`.
    """
    whole: type[KVState] = KVState
    windowed: type[WindowedKVState] = WindowedKVState
    if attention_kernels_serve(kv, head_dim, device):
        from draftwood.cache.device_kv import StoredKVState, StoredWindowedKVState

        whole, windowed = StoredKVState, StoredWindowedKVState
    if window is None or window >= capacity:
        return whole(kv, heads, head_dim, capacity, device)
    return windowed(kv, heads, head_dim, window, device)


def recurrent_state(shape: DeltaShape, weights: DeltaWeights, device: str, dtype: str = "auto") -> LayerState:
    """A gated delta net layer's state."""
    widths = {shape.key_dim, shape.value_dim}
    if _kernels_serve(device, dtype) and widths <= set(DEVICE_WIDTHS):
        from draftwood.cache.device_recurrent import DeviceRecurrentState

        return DeviceRecurrentState(shape, weights, device)
    return RecurrentState(shape, weights, device)


def attention_kernels_serve(kv: tuple[KVSpec, KVSpec], head_dim: int, device: str, dtype: str = "auto") -> bool:
    """Whether a device has kernels for attention over rows of these KV types."""
    return _kernels_serve(device, dtype) and head_dim in HEAD_WIDTHS and all(has_codec(spec) for spec in kv)


def _kernels_serve(device: str, dtype: str) -> bool:
    """Whether a device has kernels, and a user's dtype allows their operands, which are halves in places."""
    return without_triton(device) is None and dtype != "float32"
