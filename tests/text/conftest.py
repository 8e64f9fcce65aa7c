"""Tokenisers of the oracle's vocabularies, each built once a session."""

from __future__ import annotations

import functools
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from draftwood.formats.gguf import GGUFFile
from draftwood.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def oracle_tokenizer(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    """The tokeniser of an oracle file by its relative path, unpacked first if it is there as `.xz`."""

    @functools.cache
    def load(name: str) -> Tokenizer:
        path = oracle / name
        if not path.exists():
            packed = path.with_name(path.name + ".xz")
            path = tmp_path_factory.mktemp("vocabulary") / path.name
            path.write_bytes(lzma.decompress(packed.read_bytes()))
        return Tokenizer.from_metadata(GGUFFile.open(path).metadata)

    return load
