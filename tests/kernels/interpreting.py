"""Runs kernel checks where Triton is interpreted on the CPU: in a process of their own, as the choice is made on
import and then holds for every kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def run_interpreted(module: str, calls: str) -> None:
    """Run statements in the namespace of a test module, say ("tests.kernels.test_norm", "check_norm('cpu')")."""
    pytest.importorskip("triton")
    code = f"from {module} import *; {calls}"
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # NumPy, which interprets, warns of an infinity or a NaN in arithmetic, which a device does not, and of how Triton's
    # interpreter reads the bounds of a loop.
    warnings = "-W", "error", "-W", "ignore::RuntimeWarning", "-W", "ignore::DeprecationWarning"
    ran = subprocess.run(
        [sys.executable, *warnings, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
