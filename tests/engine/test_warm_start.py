"""A second start with the kernel cache of the first compiles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = "synthetic:qwen3.6-27b-tiny"

START = f"""
import json
from triton import knobs

compiled = []
def listen(*, src, cache_hit, **rest):
    if not cache_hit:
        compiled.append(src.name)
knobs.compilation.listener = listen

from draftwood import Engine, SamplingParams
engine = Engine.load("{TARGET}", draft="{TARGET}-dflash:q8_0", max_context=1024)
answers = []
for temperature in (0.0, 0.8):
    for method in ("ar", "chain", "tree"):
        for length in (5, 200):
            params = SamplingParams(24, temperature, ignore_eos=True)
            answers.append(engine.generate(list(range(1, length)), params, method=method).token_ids)
print(json.dumps([compiled, answers]))
"""


def start(cache: Path) -> tuple[list[str], list[list[int]]]:
    """Names of the kernels that a new process compiles, and what it answers."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    ran = subprocess.run(
        [sys.executable, "-c", START], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    compiled, answers = json.loads(ran.stdout.splitlines()[-1])
    return compiled, answers


def written(cache: Path) -> dict[str, int]:
    """When each file of the cache was written."""
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


@pytest.mark.gpu
def test_the_second_start_compiles_nothing(gpu: str, tmp_path: Path) -> None:
    compiled, answers = start(tmp_path)
    files = written(tmp_path)
    assert len(compiled) > 20, "the listener heard nothing"
    again, repeated = start(tmp_path)
    assert again == []
    assert written(tmp_path) == files
    assert repeated == answers
    print(f"{len(compiled)} kernels, {len(files)} files in the cache; the second start compiled and wrote none")
