"""An engine's memory: the plan's arithmetic on a card that is made up, and its promise on a GPU.

What a GPU is to hold runs in processes of their own, so that the driver's count is of one engine.
"""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from draftwood import Engine, SamplingParams
from draftwood.engine import memory, planning
from draftwood.engine.config import EngineConfig
from draftwood.engine.memory import MemoryPlan, Stock, take_stock
from draftwood.engine.sources import open_target
from draftwood.errors import DeviceError
from draftwood.planner import hardware
from draftwood.planner.hardware import DRIVER, GIB, MIB
from tests.conftest import ROOT

FOUR = "synthetic:qwen3.6-27b-4layers"
DRAFT = f"{FOUR}-dflash:q8_0"
TINY = "synthetic:qwen3.6-27b-tiny"
GROWTH = 16 * MIB
"""What may be taken after loading."""


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A card as the driver and torch tell of it."""

    def made(free: int, held: int, before: dict[str, int], uuid: str = "GPU-1") -> None:
        monkeypatch.setattr(memory, "_untouched", lambda: before)
        cuda = SimpleNamespace(
            empty_cache=lambda: None,
            mem_get_info=lambda: (free, 80 * GIB),
            memory_reserved=lambda: held,
            current_device=lambda: 0,
            get_device_properties=lambda device: SimpleNamespace(uuid=uuid),
        )
        library = SimpleNamespace(_cuda_clearCublasWorkspaces=lambda: None)
        monkeypatch.setattr(memory, "torch", SimpleNamespace(cuda=cuda, _C=library))

    return made


@pytest.mark.parametrize("uuid", ["GPU-1", "1"])
def test_a_context_that_was_seen_coming_is_the_plans_own(card: Callable[..., None], uuid: str) -> None:
    card(70 * GIB - 400 * MIB, 0, {"1": 70 * GIB, "2": 5}, uuid)
    assert take_stock() == Stock(80 * GIB, 70 * GIB, 70 * GIB, 0)
    # Another model of this process; what goes beyond a context is another program's.
    card(50 * GIB - 2 * DRIVER, 20 * GIB, {"1": 70 * GIB}, uuid)
    assert take_stock() == Stock(80 * GIB, 50 * GIB - DRIVER, 70 * GIB, 20 * GIB)


def test_a_context_that_was_not_is_taken_for_anothers(card: Callable[..., None]) -> None:
    card(69 * GIB, 3 * GIB, {})
    assert take_stock() == Stock(80 * GIB, 69 * GIB, 72 * GIB, 3 * GIB)


def test_free_memory_is_read_by_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_ask", lambda *command: "GPU-a-b, 1000\nGPU-c, [N/A]\nMIG-d, 7\n\n")
    assert hardware.free_memory() == {"a-b": 1000 * MIB, "MIG-d": 7 * MIB}


def plan(**changes: object) -> MemoryPlan:
    parts = {"weights": 10 * GIB, "workspace": GIB, "driver": 3 * GIB, "graphs": GIB, "margin": GIB}
    made = MemoryPlan(parts, GIB // 2, 20 * GIB, True, Stock(80 * GIB, 70 * GIB, 72 * GIB, 2 * GIB))
    return replace(made, **changes)  # type: ignore[arg-type]


def test_what_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is capped before the block is taken."""
    done: list[tuple[str, float]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share: done.append(("cap", share)))
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: done.append((device, size)))
    plan().set_aside()
    assert done == [("cap", (2 + 16 - 4) / 80), ("cuda", 11 * GIB)]
    done.clear()
    plan(capped=False).set_aside()
    assert done == [("cap", (2 + 20 - 4) / 80), ("cuda", 11 * GIB)]
    done.clear()
    plan(capped=False, limit=90 * GIB).set_aside()
    assert done[0] == ("cap", 1.0)


def test_what_is_used_is_counted_from_before_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 * GIB, 80 * GIB))
    assert plan().used_bytes() == 12 * GIB
    assert plan().summary() == "memory: 16.00 GiB planned of 20.00 that may be used, 12.00 in use"


def in_a_process(code: str) -> None:
    """Run a function of this module; what it says goes to the report of a failure."""
    ran = subprocess.run(
        [sys.executable, "-c", f"from tests.engine import test_memory as test\ntest.{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-6000:]
    print(ran.stdout)


def check_filling(draft: str | None, kv: str, context: int) -> None:
    """Load, then fill the context in passes of many lengths and rounds of every shape that `auto` takes."""
    engine = Engine.load(FOUR, draft=draft, kv=kv, max_context=context, vram="24GiB")
    plan = engine.memory
    assert plan is not None
    reserved, free = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]
    print(f"{draft} {kv} {context}: {plan.summary()}; torch has {reserved / GIB:.2f}")
    assert plan.used_bytes() <= plan.planned_bytes
    params = SamplingParams(100, ignore_eos=True)
    for length in (1, 63, 64, 700, 2048, 2049, 5000, context // 2 + 7, context - 100):
        if length + 100 <= context:
            engine.generate([length] * length, params)
            engine.generate([length] * length, params, method="auto")
    grown, lost = torch.cuda.memory_reserved() - reserved, free - torch.cuda.mem_get_info()[0]
    print(f"torch took {grown / MIB:.0f} MiB more, the driver gave {lost / MIB:.0f}; {plan.summary()}")
    assert grown <= GROWTH and lost <= GROWTH
    assert plan.used_bytes() <= plan.planned_bytes


@pytest.mark.gpu
@pytest.mark.parametrize("draft", [None, DRAFT])
@pytest.mark.parametrize(("kv", "context"), [("q8_0", 65536), ("f16", 16384), ("q8_0/f16", 3000)])
def test_filling_the_context_takes_nothing_more(gpu: str, draft: str | None, kv: str, context: int) -> None:
    in_a_process(f"check_filling({draft!r}, {kv!r}, {context})")


def smallest_card(nbytes: int) -> int:
    """MiB of the smallest card that has so many usable bytes."""
    mib = nbytes // MIB
    while hardware.usable(mib * MIB) < nbytes:
        mib += 1
    return mib


def check_limits(cases: int, seed: int) -> None:
    """What fits to the MiB loads and is filled; a MiB less is refused with nothing allocated."""
    draw = random.Random(seed)
    for _ in range(cases):
        options = {
            "draft": draw.choice((None, DRAFT)),
            "kv": draw.choice(("f16", "q8_0", "bf16", "f16/q8_0")),
            "max_context": draw.choice((draw.randint(200, 4000), draw.randint(4000, 40000))),
            "token_table": draw.choice(("device", "host")),
            "weights": "fast",
            "draft_kv": "q8_0",
        }
        _, wanted = planning.prepare(EngineConfig(FOUR, **options), open_target(FOUR), "cuda")  # type: ignore[arg-type]
        assert wanted is not None
        card = smallest_card(wanted.planned_bytes)
        held = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
        refused = False
        try:
            Engine.load(FOUR, **options, vram=f"{card - 1}MiB")  # type: ignore[arg-type]
        except DeviceError as error:
            refused = "does not fit" in str(error)
        assert refused
        assert held == (torch.cuda.memory_reserved(), torch.cuda.memory_allocated())
        engine = Engine.load(FOUR, **options, vram=f"{card}MiB")  # type: ignore[arg-type]
        context = engine.config.max_context
        result = engine.generate([7] * (context - 60), SamplingParams(100, ignore_eos=True))
        assert len(result.token_ids) == 60
        plan = engine.memory
        assert plan is not None
        assert plan.parts == wanted.parts
        print(f"{options}: {plan.summary()}")
        assert torch.cuda.memory_reserved() <= plan.cap_bytes
        assert plan.used_bytes() <= plan.planned_bytes
        del engine
        gc.collect()


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(4))
def test_what_fits_runs_and_what_does_not_is_refused(gpu: str, seed: int) -> None:
    in_a_process(f"check_limits(5, {seed})")


def check_cap() -> None:
    """Beyond the plan torch refuses, where the card would have had room."""
    engine = Engine.load(TINY, max_context=512, vram="24GiB")
    plan = engine.memory
    assert plan is not None
    room = plan.cap_bytes - torch.cuda.memory_allocated()
    assert room < torch.cuda.mem_get_info()[0]
    refused = False
    try:
        torch.empty(room + 4 * MIB, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        refused = True
    assert refused
    Engine.load(TINY, max_context=64, dtype="float32")  # is not planned, and lifts the cap
    torch.empty(room + 4 * MIB, dtype=torch.uint8, device="cuda")


@pytest.mark.gpu
def test_the_pool_does_not_grow_beyond_the_plan(gpu: str) -> None:
    in_a_process("check_cap()")


@pytest.fixture
def uncapped() -> Iterator[None]:
    """The process is not left with an engine's cap."""
    yield
    memory.lift_cap()


@pytest.mark.gpu
def test_places_and_layouts_give_the_same_tokens(gpu: str, uncapped: None) -> None:
    found = {}
    params = SamplingParams(60, ignore_eos=True)
    for weights in ("fast", "compact"):
        for table in ("device", "host"):
            engine = Engine.load(FOUR, draft=DRAFT, max_context=1024, weights=weights, token_table=table)
            assert engine.describe()["weights"] == weights and engine.describe()["token_table"] == table
            assert engine.target.model.embedding.raw.is_cuda == (table == "device")
            for method, budget in (("ar", None), ("chain", 7), ("tree", 22)):
                result = engine.generate(list(range(3, 203)), params, method=method, budget=budget)
                found[weights, table, method] = result.token_ids
            del engine
            gc.collect()
    assert len(found) == 12 and len({tuple(ids) for ids in found.values()}) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["l-b.Q4_1.gguf", "q35-c.Q4_K_M.gguf"])
def test_a_model_without_a_head_of_its_own_multiplies_with_its_table(
    gpu: str, uncapped: None, vendored: Path, name: str
) -> None:
    """On the device, though the table that tokens are looked up in lies on the host."""
    found = []
    for table in ("device", "host"):
        engine = Engine.load(str(vendored / "models" / name), max_context=128, token_table=table)
        assert "output.weight" not in engine.target.source.tensors
        found.append(engine.generate([1, 2, 3], SamplingParams(20, ignore_eos=True)).token_ids)
    assert found[0] == found[1]
