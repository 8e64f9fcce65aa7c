"""`draftwood synth`: a synthetic model as a GGUF file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.terminal import plain, steps


def synth(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="qwen3.6-27b, qwen3.6-27b-4layers (its first four layers) or qwen3.6-27b-tiny; with -dflash:q8_0 or "
            "-dflash:q4_k_m behind it the draft.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The GGUF file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    device: options.DeviceOption = options.DeviceName.auto,
) -> None:
    """Write a synthetic model: true shapes and types, random weights.

    What it writes means nothing, but it takes the time and the memory of the real one, here and in other engines.
    Without a file the same model is named synthetic:NAME wherever a model is named.
    """
    from draftwood.engine.sources import synthetic_model
    from draftwood.models import known

    model = synthetic_model(known.header(name))
    from draftwood.engine.loader import pick_device
    from draftwood.engine.synthesis import write_synthetic

    begun = time.perf_counter()
    with steps(len(model.tensors)) as begin:
        size = write_synthetic(model, out, pick_device(device), force, begin)
    seconds = time.perf_counter() - begun
    plain([f"{out}: {model.path.name}, {size:,} bytes of random weights, written in {seconds:.1f} s"])
