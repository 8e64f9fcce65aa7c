"""The buffers that a sequence keeps: K and V rows, the recurrent state with its replay tape, the token ids.

Torch-free. Letters: G KV heads, Hv value heads, K key width, V value width, F channels of the raw projection, R rows
of a decode pass.
"""

from __future__ import annotations

from draftwood.batch import MAX_ROWS
from draftwood.buffers import BufferSpec
from draftwood.cache.spec import KVSpec


def plane_rows(capacity: int, window: int | None = None) -> int:
    """Rows of a plane: committed ones, scratch for a pass, and a staging area.

    capacity: tokens at most. window: how far back a row sees; a plane keeps no more of them.
    """
    kept = capacity if window is None else min(capacity, window)
    return kept + 2 * MAX_ROWS


def kv_buffers(kv: tuple[KVSpec, KVSpec], heads: int, head_dim: int, rows: int) -> list[BufferSpec]:
    """K and V of one layer, each [G, rows, bytes of a row]; a KV type splits its rows into fields as it likes."""
    return [
        BufferSpec(axis, (heads, rows, kind.row_bytes(head_dim)), "uint8", "sequence")
        for axis, kind in zip(("keys", "values"), kv, strict=True)
    ]


def recurrent_buffers(value_heads: int, key_dim: int, value_dim: int, channels: int, taps: int) -> list[BufferSpec]:
    """State [Hv, K, V] and convolution window [taps - 1, F] of one gated delta net layer."""
    return [
        BufferSpec("state", (value_heads, key_dim, value_dim), "float32", "sequence"),
        BufferSpec("window", (taps - 1, channels), "float32", "sequence"),
    ]


def tape_buffers(rows: int, value_heads: int, channels: int, dtype: str, window: int = 0) -> list[BufferSpec]:
    """The replay tape of one gated delta net layer: raw projection [R, F] in `dtype`, decay and beta [R, Hv].

    window: rows of the convolution's window that are kept before those of the raw projection.
    """
    return [
        BufferSpec("raw", (window + rows, channels), dtype, "sequence"),
        BufferSpec("decay", (rows, value_heads), "float32", "sequence"),
        BufferSpec("beta", (rows, value_heads), "float32", "sequence"),
    ]


def token_buffer(capacity: int) -> BufferSpec:
    """The committed token ids; the last round may go MAX_ROWS past `capacity`."""
    return BufferSpec("tokens", (capacity + MAX_ROWS,), "int64", "sequence")
