"""Scripts on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from draftwood.errors import FormatError
from draftwood.training.prompts.scripts import ANSWER, USER, Script, read_scripts, write_scripts

SCRIPTS = [
    Script((1, 7, USER, 9, ANSWER), "chat", "opener: Why", True, 640),
    Script((ANSWER,), "raw_code", "python/json/decoder.py", False, 320),
    Script((1, 49151, USER, 9, ANSWER, 3, USER, ANSWER), "chat", "Zürich", False, 640),
]


def test_scripts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "scripts.npz"
    write_scripts(path, SCRIPTS)
    assert read_scripts(path) == SCRIPTS


def test_no_scripts_come_back(tmp_path: Path) -> None:
    write_scripts(tmp_path / "none.npz", [])
    assert read_scripts(tmp_path / "none.npz") == []


def test_another_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", tokens=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive", encoding="utf-8")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(FormatError, match="run the stage `scripts` again"):
            read_scripts(tmp_path / name)
