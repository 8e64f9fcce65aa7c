"""Shared fixtures: where the oracle, the vendored subset and the demo model are, and the device of a run."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch loads its thread pool: waiting threads that spin make small operations many times slower as soon as
# another process wants the core, and test machines are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
VENDORED = Path(__file__).resolve().parent / "data"


def oracle_path() -> Path | None:
    """`$DRAFTWOOD_ORACLE`, else `../shared/oracle`; None when neither is a folder."""
    named = os.environ.get("DRAFTWOOD_ORACLE")
    path = Path(named) if named else ROOT.parent / "shared" / "oracle"
    return path if path.is_dir() else None


@pytest.fixture(scope="session")
def oracle() -> Path:
    """The full oracle; the test is skipped where it is absent."""
    path = oracle_path()
    if path is None:
        pytest.skip("no oracle: set DRAFTWOOD_ORACLE or put it at ../shared/oracle")
    return path


@pytest.fixture(scope="session")
def vendored() -> Path:
    """The part of the oracle that is in the repository, never skipped."""
    return VENDORED


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Every test that asks for it runs on the CPU, and under `make test-gpu` on the GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return str(request.param)


@pytest.fixture
def gpu() -> str:
    """The GPU, for tests marked gpu."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return "cuda"


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model in the user's cache; `make setup` puts it there, no test fetches it."""
    named = os.environ.get("DRAFTWOOD_DEMO_MODEL")
    if named:
        return Path(named)
    from draftwood.engine.fetch import cached

    path = cached("demo")
    if path is None:
        pytest.skip("no demo model: run `make setup` (or `draftwood pull demo`)")
    return path
