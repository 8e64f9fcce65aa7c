from __future__ import annotations

import subprocess
import sys

import pytest

from draftwood.formats.ggml import BLOCK_TYPES, block_type_of_code


def test_sizes_are_those_of_the_format() -> None:
    # bits per weight as published
    bits = {name: kind.type_size * 8 / kind.block_size for name, kind in BLOCK_TYPES.items()}
    assert bits == {
        "F32": 32, "F16": 16, "BF16": 16,
        "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5, "IQ4_NL": 4.5,
        "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "IQ4_XS": 4.25,
    }  # fmt: skip


def test_row_bytes() -> None:
    assert BLOCK_TYPES["Q4_K"].row_bytes(512) == 288
    assert BLOCK_TYPES["F32"].row_bytes(3) == 12
    with pytest.raises(ValueError, match="Q8_0 blocks of 32"):
        BLOCK_TYPES["Q8_0"].row_bytes(33)


def test_codes() -> None:
    for kind in BLOCK_TYPES.values():
        assert block_type_of_code(kind.code) == kind
    unsupported = block_type_of_code(16)
    assert unsupported is not None and unsupported.name == "IQ2_XXS" and unsupported.name not in BLOCK_TYPES
    assert block_type_of_code(4) is None


def test_formats_do_not_import_torch() -> None:
    script = "import sys, draftwood.formats.gguf, draftwood.formats.safetensors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
