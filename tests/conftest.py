"""Shared fixtures: where the oracle, the vendored subset and the demo model are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
