"""`python -m draftwood` is the `draftwood` command."""

from __future__ import annotations

from draftwood.cli.main import run

if __name__ == "__main__":
    run()
