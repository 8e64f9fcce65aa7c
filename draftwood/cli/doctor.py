"""`draftwood doctor`: what this machine has, what is missing, and whether a draft belongs to a target."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.loading import open_engine
from draftwood.cli.terminal import plain
from draftwood.errors import UsageError

_LIBRARIES = ("torch", "triton", "numpy", "gguf", "safetensors", "tokenizers", "jinja2", "huggingface_hub")
# What the CPU kernels of torch look for, in the spelling of Linux (x86 and ARM).
_CPU_FLAGS = (
    "avx2",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "bf16",
    "i8mm",
)
_OPTIONAL = {"triton": "not here; a CPU needs none, and a torch build for a GPU brings it"}
_CHECK_CONTEXT = 256


def doctor(
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="TARGET", help="Load this model instead and print what it is."),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option("--draft", metavar="DRAFT", help="Also print what this draft is, and whether it fits --target."),
    ] = None,
    weights: options.WeightsOption = None,
    token_table: options.TableOption = None,
    vram: options.VramOption = None,
    device: options.DeviceOption = options.DeviceName.auto,
) -> None:
    """Show what this machine has and what is missing.

    With --target and --draft: show what these files are, and whether they fit.
    """
    if draft is not None and target is None:
        raise UsageError("a draft is checked against a target; give --target too.")
    if target is None:
        plain(_machine())
        return
    engine = open_engine(
        target, draft, max_context=_CHECK_CONTEXT, device=device, weights=weights, token_table=token_table, vram=vram
    )
    facts = {name.replace("_", " "): str(value) for name, value in engine.describe().items()}
    plain(_row(name, value) for name, value in (facts | engine.drafter.facts()).items())
    if draft is not None:
        plain(["the draft fits the target"])


def _machine() -> Iterator[str]:
    from draftwood.bench.report import commit

    yield _row("draftwood", commit())
    yield _row("python", f"{platform.python_version()} on {platform.platform()}")
    versions = {name: _version(name) for name in _LIBRARIES}
    for name, version in versions.items():
        yield _row(name, version or _OPTIONAL.get(name, "missing"))
    yield _row("cpu", _cpu())
    yield _row("memory", _memory())
    if versions["torch"]:
        yield from _devices()
    yield from _files()
    missing = [name for name, version in versions.items() if version is None and name not in _OPTIONAL]
    for name in missing:
        yield f"missing: {name}; install draftwood again"
    if not missing:
        yield "nothing is missing"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    cores = os.cpu_count() or 1
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.processor() or platform.machine()}, {cores} cores"
    pairs = (line.partition(":") for line in text.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    present = set(fields.get("flags", fields.get("Features", "")).split())
    flags = [flag for flag in _CPU_FLAGS if flag in present]
    name = fields.get("model name", platform.machine())
    return f"{name}, {cores} cores, {' '.join(flags) or 'no known extensions'}"


def _memory() -> str:
    from draftwood.engine.loader import machine_memory

    try:
        return f"{machine_memory() / 2**30:.1f} GiB"
    except (AttributeError, OSError, ValueError):
        return "unknown"


def _devices() -> Iterator[str]:
    import torch

    makers = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    build = next((f"{maker} {version}" for maker, version in makers.items() if version), "CPU")
    yield _row("torch build", f"{build}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield _row("device", "cpu (torch finds no GPU)")
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield _row("device", f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.1f} GiB")


def _files() -> Iterator[str]:
    from draftwood.engine.fetch import DRAFTS, registry

    for name, entry in registry().items():
        yield _row(name, str(entry.place) if entry.is_here else f"not here; fetch it with `draftwood pull {name}`")
    for name, entry in registry(DRAFTS).items():
        yield _row(f"{name} draft", str(entry.place) if entry.is_here else "not here; it comes with draftwood")


def _row(name: str, value: str) -> str:
    return f"{name:<20} {value}"
