"""Cards by name, the card of a machine as the driver's tools report it, and amounts as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftwood.errors import UsageError
from draftwood.planner import hardware
from draftwood.planner.hardware import GIB, MIB, cards


@pytest.mark.parametrize(
    ("name", "memory", "bandwidth", "rate"),
    [
        ("RTX 3090", 24, 936e9, 71e12),
        ("RTX 4090", 24, 1008e9, 165e12),
        ("RX 7900 XTX", 24, 960e9, 123e12),
        ("H200", 140.4, 4400e9, 790e12),
    ],
)
def test_the_known_cards(name: str, memory: float, bandwidth: float, rate: float) -> None:
    assert cards()[name] == hardware.Card(name, int(memory * GIB), bandwidth, rate)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("rtx 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("7900xtx", "RX 7900 XTX"),
    ],
)
def test_spellings_of_a_card(text: str, name: str) -> None:
    assert hardware.card_named(text).name == name


@pytest.mark.parametrize("text", ["RTX 5090", "", "nvidia", "90", "0/71", "936/", "936/71/2"])
def test_unknown_cards_list_the_known_ones(text: str) -> None:
    with pytest.raises(
        UsageError, match="RTX 3090, RTX 4090, RX 7900 XTX, H200, and any other can be given by its rates"
    ):
        hardware.card_named(text)


def test_a_card_by_its_rates() -> None:
    card = hardware.card_named("1792/209.5")
    assert (card.bandwidth, card.rate) == (1792e9, 209.5e12)


def test_a_driver_that_names_another_card() -> None:
    assert hardware.known_card("NVIDIA GeForce RTX 3090 Ti") is None
    assert hardware.known_card("NVIDIA H200") == cards()["H200"]
    assert hardware.known_card("Radeon RX 7900 XTX") == cards()["RX 7900 XTX"]


def test_what_can_be_used_of_24_gib() -> None:
    assert hardware.usable(24 * GIB) == 23.25 * GIB


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * GIB), ("24", 24 * GIB), ("24 gb", 24 * GIB), ("15.5g", int(15.5 * GIB)), ("800MiB", 800 * MIB)],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert hardware.parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "-4GiB", "24TiB", "0", "nan", "1e3", "99999999999", "24 Gi B"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match=r"--vram is .*24GiB"):
        hardware.parse_memory(text)


@pytest.mark.parametrize(
    ("text", "tokens"), [("4096", 4096), ("256K", 262144), ("128k", 131072), ("1M", 1 << 20), ("1.5k", 1536)]
)
def test_amounts_of_tokens(text: str, tokens: int) -> None:
    assert hardware.parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "1", "long", "-1", "256KB", "17M", "inf"])
def test_what_is_no_context(text: str) -> None:
    with pytest.raises(UsageError, match=r"--context is .*128K"):
        hardware.parse_tokens(text)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the whole search path, and no amdgpu driver."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(hardware, "SYSFS", tmp_path / "drm")
    return tmp_path


def tool(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def says(folder: Path, name: str, text: str) -> None:
    tool(folder, name, "\n".join(f"echo '{line}'" for line in text.splitlines()))


def test_nothing_is_found_where_nothing_is(tools: Path) -> None:
    assert hardware.find() is None


def test_nvidia_smi(tools: Path) -> None:
    says(tools, "nvidia-smi", "NVIDIA GeForce GTX 1060, 6144, 6000\nNVIDIA GeForce RTX 3090, 24576, 23012")
    found = hardware.find()
    assert found == hardware.Found("NVIDIA GeForce RTX 3090", 24576 * MIB, 23012 * MIB, "nvidia-smi")


def test_rocm_smi(tools: Path) -> None:
    memory = '"VRAM Total Memory (B)": "25753026560", "VRAM Total Used Memory (B)": "1000"'
    card = f'{{"Card Series": "Radeon RX 7900 XTX", {memory}}}'
    says(tools, "rocm-smi", f'{{"card0": {card}, "system": {{"Driver version": "6"}}}}')
    assert hardware.find() == hardware.Found("Radeon RX 7900 XTX", 25753026560, 25753025560, "rocm-smi")


def test_the_amdgpu_driver(tools: Path) -> None:
    for card, total, used in (("card0", 536870912, 0), ("card1", 25753026560, 26214400), ("card2", "broken", 1)):
        device = tools / "drm" / card / "device"
        device.mkdir(parents=True)
        (device / "mem_info_vram_total").write_text(f"{total}\n")
        (device / "mem_info_vram_used").write_text(f"{used}\n")
    found = hardware.find()
    assert found is not None and (found.memory, found.free) == (25753026560, 25753026560 - 26214400)


@pytest.mark.parametrize(
    "body", ["exit 9", "echo 'No devices were found'", "echo 'NVIDIA X, [N/A], [N/A]'", "exec sleep 9"]
)
def test_a_tool_that_does_not_answer(tools: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    monkeypatch.setattr(hardware, "TIMEOUT", 0.2)
    tool(tools, "nvidia-smi", body.replace("sleep", "/bin/sleep"))
    tool(tools, "rocm-smi", "echo '[1, 2]'")
    assert hardware.find() is None
