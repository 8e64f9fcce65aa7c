"""The drafters by name, and which of them a draft file belongs to. One line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from draftwood.errors import UnsupportedModelError

if TYPE_CHECKING:
    from draftwood.decode.drafters.base import Drafter, DrafterRequest


@dataclass(frozen=True)
class DrafterSpec:
    """name: what the user writes, or the kind of file. module: has `open_drafter(DrafterRequest) -> Drafter`.

    accepts: whether a draft file's architecture belongs to it; None for drafters without a file.
    """

    name: str
    module: str
    accepts: Callable[[str], bool] | None = None


DRAFTERS: dict[str, DrafterSpec] = {
    spec.name: spec
    for spec in (
        DrafterSpec("none", "draftwood.decode.drafters.none"),
        DrafterSpec("lookup", "draftwood.decode.drafters.lookup"),
        DrafterSpec(
            "dflash",
            "draftwood.decode.drafters.dflash",
            lambda architecture: "dflash" in architecture.lower(),
        ),
    )
}


def named_drafter(name: str) -> DrafterSpec | None:
    """The drafter of that name, if it is one that needs no file."""
    spec = DRAFTERS.get(name)
    return spec if spec is not None and spec.accepts is None else None


def drafter_of_architecture(path: Path, architecture: str) -> DrafterSpec:
    """The drafter that a draft file of this architecture belongs to."""
    for spec in DRAFTERS.values():
        if spec.accepts is not None and spec.accepts(architecture):
            return spec
    raise UnsupportedModelError(
        f"{path.name}: {architecture[:40]!r} is not a draft architecture; "
        "give a DFlash draft made for this target, or 'lookup'."
    )


def load(spec: DrafterSpec) -> Callable[[DrafterRequest], Drafter]:
    """The module's `open_drafter`."""
    opener: Callable[[DrafterRequest], Drafter] = import_module(spec.module).open_drafter
    return opener
