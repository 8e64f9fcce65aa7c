"""The card a plan is made for: known ones, the one in this machine, and what of its memory can be used. Torch-free."""

from __future__ import annotations

import json
import math
import re
import subprocess
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from draftwood.errors import UsageError

GIB = 1 << 30
MIB = 1 << 20

DEFAULT_CARD = "RTX 3090"
TIMEOUT = 3.0
"""Seconds that a driver's tool may take."""

SYSFS = Path("/sys/class/drm")

DRIVER = 685 * MIB
"""The driver's context with torch, cuBLAS and 40 Triton kernels: measured on an H100 (torch 2.11, CUDA 13)."""

GRAPH = 16 * MIB
"""What the driver keeps for a captured graph of 1,200 launches: measured there too, six at once."""

GRAPHS = 8 * GRAPH
"""Those that an engine captures when it is loaded: the most shapes that `auto` chooses from (`tests/engine` counts)."""

MARGIN = 256 * MIB
"""For what an allocator rounds up and cannot join again."""

_MAKERS = re.compile(r"nvidia|geforce|amd|radeon|instinct|[^a-z0-9]")
_RATES = re.compile(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Card:
    """A card: memory in bytes, bandwidth in bytes/s, rate of fp16 products with float32 sums in operations/s."""

    name: str
    memory: int
    bandwidth: float
    rate: float


@dataclass(frozen=True)
class Found:
    """The card in this machine: its name, its memory and what is free of it in bytes, and who said so."""

    name: str
    memory: int
    free: int
    source: str


def usable(memory: int) -> int:
    """Bytes that one program can have, by the driver's count: 23.25 of 24 GiB."""
    return memory * 31 // 32


def cards() -> dict[str, Card]:
    """The known cards by name."""
    text = resources.files("draftwood.planner").joinpath("cards.toml").read_text(encoding="utf-8")
    return {
        name: Card(name, int(row["memory"] * GIB), row["bandwidth"] * 1e9, row["tflops"] * 1e12)
        for name, row in tomllib.loads(text).items()
    }


def _folded(name: str) -> str:
    return _MAKERS.sub("", name.lower())


def known_card(name: str) -> Card | None:
    """The known card that a driver's name means; a "Ti" is another card."""
    return next((card for key, card in cards().items() if _folded(key) == _folded(name)), None)


def card_named(text: str) -> Card:
    """The card that a user means: a known name or a part of one, or rates as in "936/71" (memory of the default card).

    A UsageError lists the known ones.
    """
    rates = _RATES.fullmatch(text.strip())
    if rates is not None and 0 < float(rates[1]) < 1e6 and 0 < float(rates[2]) < 1e6:
        memory = cards()[DEFAULT_CARD].memory
        return Card(f"a card of {rates[1]} GB/s", memory, float(rates[1]) * 1e9, float(rates[2]) * 1e12)
    wanted = _folded(text)
    close = [card for key, card in cards().items() if wanted and wanted in _folded(key)]
    card = known_card(text) or (close[0] if len(close) == 1 else None)
    if card is None:
        raise UsageError(
            f"unknown card {text[:40]!r}; the known ones are {', '.join(cards())}, and any other can be given by its "
            "rates in GB/s and fp16 TFLOP/s, as in 936/71."
        )
    return card


def find() -> Found | None:
    """The card with the most memory in this machine, asked of the driver's tools and of Linux; None without one."""
    for look in (_nvidia, _rocm, _sysfs):
        found = look()
        if found:
            return max(found, key=lambda card: card.memory)
    return None


def _ask(*command: str) -> str:
    """What a tool prints; nothing where it is missing, fails or takes too long."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return ran.stdout


def _nvidia() -> list[Found]:
    text = _ask("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [
        Found(row[0], int(row[1]) * MIB, int(row[2]) * MIB, "nvidia-smi")
        for row in rows
        if len(row) == 3 and row[1].isdigit() and row[2].isdigit()
    ]


def free_memory() -> dict[str, int]:
    """Free bytes of NVIDIA's cards by their UUIDs, without a context on any of them; empty where no tool says."""
    text = _ask("nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits")
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return {row[0].removeprefix("GPU-"): int(row[1]) * MIB for row in rows if len(row) == 2 and row[1].isdigit()}


def _rocm() -> list[Found]:
    try:
        answer = json.loads(_ask("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json") or "{}")
        return [
            Found(
                row.get("Card Series", row.get("Card series", "an AMD card")),
                int(row["VRAM Total Memory (B)"]),
                int(row["VRAM Total Memory (B)"]) - int(row["VRAM Total Used Memory (B)"]),
                "rocm-smi",
            )
            for row in answer.values()
            if "VRAM Total Memory (B)" in row
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _sysfs() -> list[Found]:
    found = []
    for path in sorted(SYSFS.glob("card*/device/mem_info_vram_total")):
        try:
            memory, used = (int((path.parent / f"mem_info_vram_{what}").read_text()) for what in ("total", "used"))
        except (OSError, ValueError):
            continue
        found.append(Found("an AMD card", memory, memory - used, "the amdgpu driver"))
    return found


def parse_memory(text: str) -> int:
    """ "24GiB", "24 GB" or "24" (a card's GB are GiB), or "800MiB" -> bytes; a UsageError for anything else."""
    units = {"": GIB, "g": GIB, "gb": GIB, "gib": GIB, "m": MIB, "mb": MIB, "mib": MIB}
    value = _number(text, units)
    if value is None or not MIB <= value <= 1 << 46:
        raise UsageError(f"--vram is {text[:40]!r}, but must be an amount of memory as in 24GiB; give another.")
    return value


def parse_tokens(text: str, flag: str = "--context") -> int:
    """ "131072", "128K" (K = 1024) or "1M" -> tokens; a UsageError, which names the flag, for anything else."""
    value = _number(text, {"": 1, "k": 1 << 10, "m": 1 << 20})
    if value is None or not 2 <= value <= 1 << 24:
        raise UsageError(f"{flag} is {text[:40]!r}, but must be 2 to 16M tokens as in 131072 or 128K; give another.")
    return value


def _number(text: str, units: dict[str, int]) -> int | None:
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in units:
        return None
    value = float(found[1]) * units[found[2]]
    return int(value) if math.isfinite(value) else None
