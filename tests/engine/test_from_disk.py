"""A model from disk is the one made on the device, bit for bit, and loading it takes no more memory than planned.

The slow case writes the 16 GB of the whole 27B shape and prints what it took: `pytest -m slow -rP`, with a `--basetemp`
that has the room."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draftwood import Engine, SamplingParams
from draftwood.engine.sources import synthetic_model
from draftwood.engine.synthesis import write_synthetic
from draftwood.models import known

ROOT = Path(__file__).resolve().parent.parent.parent
IDS = [7 * place % 1000 for place in range(150)]
CONTEXT, KV = 16384, "q8_0"
HOST_GROWTH = 2 << 30


class HostMemory:
    """The most memory of this process that no file backs, seen every 10 ms; the driver's pinned pages do not count."""

    def __init__(self) -> None:
        self.before = self.most = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> HostMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return self.most - self.before

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None, "this kernel does not tell anonymous pages apart"
        return int(found[1]) << 10


def load_and_score(target: str, device: str, out: str) -> None:
    """Load a target as a user would, write its logits to `out` and print the figures; in a process of its own."""
    if device != "cpu":
        torch.zeros(1, device=device)  # what the driver takes in the host is not the loader's
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    with HostMemory() as host:
        engine = Engine.load(target, device=device, max_context=CONTEXT, kv=KV)
        if device != "cpu":
            torch.cuda.synchronize()
        ready = time.perf_counter() - begun
        loaded = torch.cuda.max_memory_allocated() if device != "cpu" else 0
        np.save(out, engine.logits(IDS))
        answer = engine.generate(IDS, SamplingParams(12, ignore_eos=True), method="ar").token_ids
    memory = engine.memory
    figures = {
        "ready_seconds": round(ready, 2),
        "host_growth": host.growth,
        "device_peak_loading": loaded,
        "device_peak": torch.cuda.max_memory_allocated() if device != "cpu" else 0,
        "device_reserved": torch.cuda.max_memory_reserved() if device != "cpu" else 0,
        "device_planned": 0 if memory is None else memory.planned_bytes - memory.outside_bytes,
        "driver": [] if memory is None else [memory.used_bytes(), memory.planned_bytes],
        "answer": answer,
    }
    print(json.dumps(figures))


def in_its_own_process(target: str, device: str, out: Path) -> tuple[dict[str, Any], Any]:
    call = f"from tests.engine.test_from_disk import load_and_score; load_and_score(*{(target, device, str(out))!r})"
    ran = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1]), np.load(out)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("synthetic:qwen3.6-27b-tiny", "cpu"),
        pytest.param("synthetic:qwen3.6-27b-tiny", "cuda", marks=pytest.mark.gpu),
        pytest.param("synthetic:qwen3.6-27b", "cuda", marks=(pytest.mark.gpu, pytest.mark.slow)),
    ],
)
def test_a_file_is_the_model_made_in_place(name: str, device: str, tmp_path: Path) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    path = tmp_path / "model.gguf"
    begun = time.perf_counter()
    size = write_synthetic(synthetic_model(known.header(name)), path, device)
    seconds = time.perf_counter() - begun
    print(f"written: {size:,} bytes in {seconds:.1f} s, {size / seconds / 1e9:.2f} GB/s")
    if device == "cuda":
        torch.cuda.empty_cache()  # the other processes need the room
    from_file, logits = in_its_own_process(str(path), device, tmp_path / "file.npy")
    in_place, expected = in_its_own_process(name, device, tmp_path / "memory.npy")
    path.unlink()
    print(f"from disk: {from_file}\nmade in place: {in_place}")
    assert np.isfinite(logits).all() and np.array_equal(logits, expected)
    assert from_file["answer"] == in_place["answer"]
    assert from_file["host_growth"] <= HOST_GROWTH
    assert from_file["driver"] == sorted(from_file["driver"]) and bool(from_file["driver"]) == (device == "cuda")
    assert from_file["device_planned"] == in_place["device_planned"]
    for took in (from_file, in_place):
        assert took["device_peak"] <= took["device_planned"]
