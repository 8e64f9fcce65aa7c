"""Choosing among the forms of an operation: the first that can run, decided once at load."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from draftwood.errors import DeviceError

Request = TypeVar("Request", contravariant=True)


class Candidate(Protocol[Request]):
    """Anything with a name and a `can_run` that says why not, or None."""

    @property
    def name(self) -> str:
        """Short name for reports."""

    @property
    def can_run(self) -> Callable[[Request], str | None]:
        """The reason it cannot serve a request, or None."""


Chosen = TypeVar("Chosen", bound=Candidate)  # type: ignore[type-arg]


def select(what: str, candidates: Iterable[Chosen], request: object) -> Chosen:
    """The first candidate that can serve `request`; a DeviceError lists every reason when none can."""
    reasons = []
    for candidate in candidates:
        reason = candidate.can_run(request)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.name}: {reason}")
    raise DeviceError(f"no form of {what} can run {request}: {'; '.join(reasons)}.")


@dataclass(frozen=True)
class ModuleForm:
    """A form that is a module beside its package's `__init__`, imported once chosen; a request is a device."""

    name: str
    can_run: Callable[[str], str | None]


def without_triton(device: str) -> str | None:
    """Why Triton kernels cannot serve a device ("cpu", "cuda"), or None."""
    if device == "cpu":
        return "it runs on a GPU"
    return None if find_spec("triton") else "Triton is not installed"


MODULE_FORMS = (ModuleForm("triton", without_triton), ModuleForm("reference", lambda device: None))
"""The forms of an operation whose arguments every form takes as they are."""


def load_form(package: str, function: str, device: str) -> Any:
    """The function of this name in the first module of `package` that can serve `device` ("cpu", "cuda")."""
    return getattr(_module(package, function, MODULE_FORMS, device), function)


def load_device_module(package: str, what: str, device: str, module: str = "triton") -> Any:
    """The module of `package` with its kernels for a GPU; a DeviceError says why `device` has no form of `what`."""
    return _module(package, what, (ModuleForm(module, without_triton),), device)


def _module(package: str, what: str, forms: tuple[ModuleForm, ...], device: str) -> Any:
    return import_module(f"{package}.{select(what, forms, device).name}")
