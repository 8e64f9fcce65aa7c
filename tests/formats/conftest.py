"""A writer of small GGUF files by hand, so that tests can write what a sane library refuses to."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pytest

# (name, shape in file order, type code, offset, data)
Tensor = tuple[str, Sequence[int], int, int]


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def gguf_bytes(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[Tensor] = (),
    data: bytes = b"",
    version: int = 3,
    magic: bytes = b"GGUF",
    order: str = "<",
    alignment: int = 32,
) -> bytes:
    head = magic + struct.pack(f"{order}IQQ", version, len(tensors), len(pairs)) + b"".join(pairs)
    for name, shape, code, offset in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, code, offset)
    return head + bytes(-len(head) % alignment) + data


@pytest.fixture
def build() -> Callable[..., bytes]:
    return gguf_bytes


@pytest.fixture
def key_value() -> Callable[[str | bytes, int, bytes], bytes]:
    return pair
