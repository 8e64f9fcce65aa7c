"""`max_context="auto"`: what is left of the memory becomes context."""

from __future__ import annotations

import pytest

from draftwood import Engine, SamplingParams
from draftwood.cache.registry import kv_pair
from draftwood.engine import planning
from draftwood.engine.config import AUTO_CONTEXT, EngineConfig
from draftwood.errors import DeviceError
from draftwood.formats.gguf import GGUFFile
from draftwood.planner import plan
from tests.conftest import VENDORED

TINY = VENDORED / "models" / "q35-c.Q4_K_M.gguf"


def settled(monkeypatch: pytest.MonkeyPatch, free: int, device: str = "cpu", **options: object) -> EngineConfig:
    monkeypatch.setattr(planning, "_memory", lambda device: (free, free))
    config = EngineConfig(str(TINY), max_context=AUTO_CONTEXT, **options)  # type: ignore[arg-type]
    return planning.settle(config, GGUFFile.open(TINY), device)


def test_a_given_context_is_kept() -> None:
    config = EngineConfig(str(TINY), max_context=64)
    assert planning.settle(config, GGUFFile.open(TINY), "cpu") is config


def test_the_engine_settles_and_runs() -> None:
    engine = Engine.load(str(TINY), draft="lookup", kv="auto", max_context="auto", dtype="float32")
    assert engine.describe()["max_context"] == 4096
    assert engine.describe()["kv"] == "f32"
    assert len(engine.generate([1, 2, 3], SamplingParams(4, ignore_eos=True)).token_ids) == 4


def test_less_memory_gives_less_context(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = [settled(monkeypatch, free << 20).max_context for free in (4096, 400, 290, 287)]
    assert contexts[0] == 4096
    assert contexts == sorted(contexts, reverse=True) and contexts[0] > contexts[2] > contexts[3]
    with pytest.raises(DeviceError, match="does not fit"):
        settled(monkeypatch, 64 << 20)


def test_on_a_gpu_the_planner_picks_the_type(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, 1 << 32, "cuda").kv == "q8_0/q8_0"
    assert settled(monkeypatch, 1 << 32, "cuda", kv="f16").kv == "f16"
    assert settled(monkeypatch, 1 << 32).kv == "auto"


def test_fewer_bits_leave_room_for_more_context(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 290 << 20
    assert settled(monkeypatch, free, kv="q8_0").max_context > settled(monkeypatch, free, kv="f32").max_context


def test_the_drafts_options_reach_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig("t", draft="d", draft_window=7)
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(planning, "open_draft", lambda name: f"opened {name}")
    monkeypatch.setattr(planning.inventory, "draft_of", lambda *arguments: seen.append(arguments))
    planning._draft(config, planning.inventory.target_of_file(TINY))
    assert seen[0][0] == "opened d" and seen[0][2:] == ("d", "file", "auto", 7)


def test_what_todays_kernels_take_beside_the_plan() -> None:
    """A commit makes a second state, and a pass decodes a layer's K and V to float32."""
    target = planning.inventory.target_of_file(TINY)
    setup = plan.Setup(target, None, kv_pair("q8_0"), kv_pair("q8_0"), 100, 1)
    planned, taken = plan.parts(setup), planning._parts(setup)
    assert taken["state"] == 2 * planned["state"]
    assert taken["decoded"] == 2 * 4 * target.spec.kv_heads * target.spec.head_dim * 128
    assert not {"weights", "table", "driver", "graphs"} & set(taken)
