"""Which form of an operation a device gets, and what is said when none fits."""

from __future__ import annotations

from types import ModuleType

import pytest

from draftwood.errors import DeviceError
from draftwood.kernels import _select, activation, embedding, gumbel, norm, rope, top_k

FUNCTIONS = [
    (activation, "silu_gate"),
    (embedding, "embed"),
    (gumbel, "gumbel_argmax"),
    (norm, "rms_norm"),
    (norm, "add_rms_norm"),
    (rope, "rotate_heads"),
    (top_k, "top_k"),
]


@pytest.mark.parametrize(("package", "name"), FUNCTIONS)
def test_every_operation_has_both_forms(package: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = getattr(package, f"load_{name}")
    assert load("cpu").__module__ == f"{package.__name__}.reference"
    with monkeypatch.context() as patch:
        patch.setattr(_select, "find_spec", lambda name: None)
        assert load("cuda").__module__ == f"{package.__name__}.reference"
    pytest.importorskip("triton")
    assert load("cuda").__module__ == f"{package.__name__}.triton"


def test_all_reasons_are_said_when_nothing_fits() -> None:
    forms = [_select.ModuleForm(name, lambda device, name=name: f"{name} is for another device") for name in "ab"]
    with pytest.raises(DeviceError, match="no form of norm can run cpu: a: a is for another device; b: b is for"):
        _select.select("norm", forms, "cpu")
