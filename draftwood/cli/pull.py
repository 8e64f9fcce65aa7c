"""`draftwood pull`: fetch models and prompts into the user's cache."""

from __future__ import annotations

from typing import Annotated

import typer


def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|hf:OWNER/REPO/FILE]...", help="What to fetch; nothing lists the known names."),
    ] = None,
) -> None:
    """Fetch models and prompts, or list them.

    Prints where the files are; what is here already is checked and kept.
    """
    from draftwood.engine import fetch

    if not names:
        for name, entry in fetch.registry().items():
            state = "here" if entry.is_here else f"{entry.download_size / 1e6:.1f} MB to fetch"
            print(f"{name:<12} {entry.about} ({state})")
        for name, entry in fetch.registry(fetch.DRAFTS).items():
            state = "part of draftwood" if entry.is_here else "missing from this installation"
            print(f"{f'{name} draft':<12} {entry.about} ({state})")
        return
    for name in names:
        print(f"{name}: {fetch.pull(name)}", flush=True)
