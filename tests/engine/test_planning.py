"""What an engine chooses for the memory that there is: before it loads on a GPU, after it on a CPU."""

from __future__ import annotations

import dataclasses
import random

import pytest

from draftwood import Engine, SamplingParams
from draftwood.cache.registry import kv_pair
from draftwood.engine import engine as engine_module
from draftwood.engine import planning
from draftwood.engine.config import AUTO_CONTEXT, EngineConfig
from draftwood.engine.memory import MemoryPlan, Stock
from draftwood.engine.sources import open_target
from draftwood.errors import DeviceError, UsageError
from draftwood.formats.gguf import GGUFFile
from draftwood.kernels.linear import load_linear
from draftwood.layers import weights
from draftwood.planner import hardware, plan
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


BIG = "synthetic:qwen3.6-27b"
DRAFT = f"{BIG}-dflash:q8_0"
GIB = hardware.GIB


def prepared(
    monkeypatch: pytest.MonkeyPatch,
    free: int = 80 * GIB,
    target: str = BIG,
    draft: str | None = DRAFT,
    **options: object,
) -> tuple[EngineConfig, MemoryPlan]:
    """What an engine settles on a card of 80 GiB of which some are free; nothing is loaded."""
    monkeypatch.setattr(planning, "take_stock", lambda: Stock(80 * GIB, free, free, 0))
    config = EngineConfig(target, draft, **options)  # type: ignore[arg-type]
    source = open_target(target) if target == BIG else GGUFFile.open(TINY)
    settled, memory = planning.prepare(config, source, "cuda")
    assert memory is not None
    return settled, memory


def sizes(target: str, settled: EngineConfig, draft: str | None) -> dict[str, int]:
    """The planner's parts of what was settled."""
    model = planning.inventory.synthetic_target(target)
    setup = plan.Setup(
        model,
        None if draft is None else planning.inventory.synthetic_draft(draft, model),
        kv_pair(settled.kv),
        kv_pair("q8_0" if draft is None else settled.draft_kv),
        settled.max_context,
        1 if draft is None else 64,
        settled.weights,
        settled.token_table == "device",
    )
    return plan.parts(setup)


@pytest.mark.parametrize("draft", [None, DRAFT])
def test_with_room_nothing_is_pulled(monkeypatch: pytest.MonkeyPatch, draft: str | None) -> None:
    settled, memory = prepared(monkeypatch, draft=draft, max_context=8192)
    assert (settled.weights, settled.token_table, settled.kv) == ("fast", "device", "f16/f16")
    assert settled.draft_kv == ("auto" if draft is None else "q8_0/q8_0")
    assert memory.parts == sizes(BIG, settled, draft)


def test_levers_are_pulled_one_by_one_as_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a named context and KV type, and no more of them than it takes."""
    named = {"max_context": 8192, "kv": "q8_0"}
    roomy, memory = prepared(monkeypatch, **named)
    seen = [(roomy.weights, roomy.token_table, roomy.draft_kv)]
    while True:
        try:
            settled, memory = prepared(monkeypatch, memory.planned_bytes - 1, **named)
        except DeviceError as error:
            assert "the longest context that does is" in str(error)
            break
        assert memory.parts == sizes(BIG, settled, DRAFT)
        assert (settled.max_context, settled.kv) == (8192, "q8_0/q8_0")
        seen.append((settled.weights, settled.token_table, settled.draft_kv))
    assert seen[:3] == [
        ("fast", "device", "q8_0/q8_0"),
        ("fast", "host", "q8_0/q8_0"),
        ("compact", "host", "q8_0/q8_0"),
    ]
    tight = planning._levers(EngineConfig(BIG, DRAFT), drafted())
    assert len(seen) == 1 + len(list(tight))


def drafted() -> planning.inventory.Draft:
    return planning.inventory.synthetic_draft(DRAFT, planning.inventory.synthetic_target(BIG))


def test_a_type_without_kernels_is_no_choice_for_the_drafts_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [lever.name for lever in planning._levers(EngineConfig(BIG, DRAFT), drafted())]
    monkeypatch.setattr(planning, "attention_kernels_serve", lambda *arguments: False)
    less = [lever.name for lever in planning._levers(EngineConfig(BIG, DRAFT), drafted())]
    assert less == ["host_table", "compact_weights"] == names[:2]


@pytest.mark.parametrize(
    ("named", "kept"),
    [
        ({"weights": "compact"}, ("compact", "device", "q8_0/q8_0")),
        ({"token_table": "host"}, ("fast", "host", "q8_0/q8_0")),
        ({"draft_kv": "f16"}, ("fast", "device", "f16/f16")),
        ({"weights": "fast", "token_table": "device"}, ("fast", "device", "q8_0/q8_0")),
    ],
)
def test_what_is_named_is_kept_with_room_and_refused_without(
    monkeypatch: pytest.MonkeyPatch, named: dict[str, str], kept: tuple[str, str, str]
) -> None:
    named = {"kv": "q8_0", **named}
    settled, memory = prepared(monkeypatch, max_context=8192, **named)
    assert (settled.weights, settled.token_table, settled.draft_kv) == kept
    assert memory.parts == sizes(BIG, settled, DRAFT)
    for free in range(memory.planned_bytes, memory.planned_bytes - 4 * GIB, -GIB // 4):
        try:
            tight, less = prepared(monkeypatch, free, max_context=8192, **named)
        except DeviceError:
            break
        found = {
            "weights": tight.weights,
            "token_table": tight.token_table,
            "draft_kv": tight.draft_kv.partition("/")[0],
        }
        assert all(found[name] == value for name, value in named.items() if name != "kv")
        assert less.planned_bytes <= free and tight.kv == "q8_0/q8_0" and tight.max_context == 8192
    else:
        pytest.fail("nothing was refused")


@pytest.mark.parametrize("case", range(20))
def test_at_the_limit_and_a_byte_above_it(monkeypatch: pytest.MonkeyPatch, case: int) -> None:
    """Everything is named: the plan's bytes are accepted, a byte less is refused, and the longest context is true."""
    draw = random.Random(case)
    named = {
        "kv": draw.choice(("f16", "q8_0", "q8_0/f16")),
        "weights": draw.choice(("fast", "compact")),
        "token_table": draw.choice(("device", "host")),
        "draft_kv": draw.choice(("f16", "q8_0")),
        "draft": draw.choice((None, DRAFT)),
    }
    context = draw.randint(64, 262144)
    _, memory = prepared(monkeypatch, max_context=context, **named)
    limit = memory.planned_bytes
    _, again = prepared(monkeypatch, limit, max_context=context, **named)
    assert again.parts == memory.parts
    with pytest.raises(DeviceError, match="the longest context that does is") as refused:
        prepared(monkeypatch, limit - 1, max_context=context, **named)
    longest = int(str(refused.value).partition("that does is ")[2].partition(", with")[0].replace(",", ""))
    prepared(monkeypatch, limit - 1, max_context=longest, **named)
    with pytest.raises(DeviceError):
        prepared(monkeypatch, limit - 1, max_context=longest + 1, **named)


def test_an_open_context_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = prepared(monkeypatch, max_context=AUTO_CONTEXT)
    assert (whole.max_context, whole.kv) == (262144, "q8_0/q8_0")
    assert (whole.weights, whole.token_table) == ("fast", "device")
    some, memory = prepared(monkeypatch, 20 * GIB, max_context=AUTO_CONTEXT, kv="q8_0")
    assert some.max_context < 262144 and some.weights == "compact" and some.token_table == "host"
    assert memory.planned_bytes <= 20 * GIB and memory.parts == sizes(BIG, some, DRAFT)
    with pytest.raises(DeviceError):
        prepared(monkeypatch, 20 * GIB, max_context=some.max_context + 64, kv="q8_0")


def test_an_open_type_is_f16_until_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy, memory = prepared(monkeypatch, max_context=65536)
    assert roomy.kv == "f16/f16"
    tight, _ = prepared(monkeypatch, memory.planned_bytes - 1, max_context=65536)
    assert tight.kv == "q8_0/q8_0" and (tight.weights, tight.token_table) == ("fast", "device")


def test_a_named_amount_is_what_is_planned_for_and_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    settled, memory = prepared(monkeypatch, max_context=AUTO_CONTEXT, kv="q8_0", vram="24GiB")
    outside = hardware.DRIVER + hardware.GRAPHS
    assert memory.limit == hardware.usable(24 * GIB) >= memory.planned_bytes
    assert memory.cap_bytes == memory.planned_bytes - outside
    assert settled.max_context < 262144
    _, free = prepared(monkeypatch, max_context=8192)
    assert free.limit == 80 * GIB and free.cap_bytes == 80 * GIB - outside
    _, less = prepared(monkeypatch, 22 * GIB, max_context=AUTO_CONTEXT, kv="q8_0", vram="24GiB")
    assert less.limit == 22 * GIB
    with pytest.raises(UsageError, match="--vram"):
        EngineConfig(BIG, vram="much")


def test_block_rounds_and_margin_are_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    for draft in (None, DRAFT):
        _, memory = prepared(monkeypatch, draft=draft, max_context=8192, vram="40GiB")
        pieces = memory.block_bytes, memory.round_bytes, memory.small, hardware.MARGIN // 4
        assert sum(pieces) == memory.cap_bytes and memory.small > 0
        assert memory.round_bytes == memory.rounds + hardware.MARGIN // 4
        assert 0 < memory.rounds < memory.parts["workspace"] + memory.parts.get("features", 0)
    other = Stock(80 * GIB, 60 * GIB, 79 * GIB, held=19 * GIB)
    monkeypatch.setattr(planning, "take_stock", lambda: other)
    _, beside = planning.prepare(EngineConfig(BIG, max_context=8192, vram="40GiB"), open_target(BIG), "cuda")
    assert beside is not None and beside.cap_bytes == 19 * GIB + beside.planned_bytes - beside.outside_bytes


def test_a_drafter_without_a_file_checks_as_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = prepared(monkeypatch, draft=None, max_context=8192)
    _, lookup = prepared(monkeypatch, draft="lookup", max_context=8192)
    assert lookup.parts["workspace"] > plain.parts["workspace"] and "draft" not in lookup.parts


def test_a_layer_is_decoded_where_heads_have_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"target": str(TINY), "draft": None, "kv": "q8_0", "max_context": 100}
    _, served = prepared(monkeypatch, **named)  # type: ignore[arg-type]
    monkeypatch.setattr(planning, "attention_kernels_serve", lambda *arguments: False)
    _, decoded = prepared(monkeypatch, **named)  # type: ignore[arg-type]
    assert {**served.parts, "decoded": 2 * 4 * 1 * 128 * 128} == decoded.parts


def test_without_a_plan_only_what_is_asked_for_is_refused() -> None:
    source = GGUFFile.open(TINY)
    for device, dtype in (("cpu", "auto"), ("cuda", "float32"), ("cuda", "bfloat16")):
        config = EngineConfig(str(TINY), dtype=dtype, device=device)
        settled, memory = planning.prepare(config, source, device)
        assert memory is None and (settled.weights, settled.token_table) == ("fast", "device")
        assert (settled.kv, settled.max_context) == (config.kv, config.max_context)
        for options in ({"weights": "compact"}, {"vram": "24GiB"}):
            with pytest.raises(UsageError, match=r"nothing is packed or planned; leave it out\.$"):
                planning.prepare(EngineConfig(str(TINY), dtype=dtype, **options), source, device)


def test_nothing_is_loaded_before_the_plan_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is settled is what is loaded."""
    order: list[str] = []

    class Aside:
        def set_aside(self) -> None:
            order.append("set aside")

    def settle(config: EngineConfig, source: object, device: str) -> tuple[EngineConfig, Aside]:
        order.append("planned")
        return dataclasses.replace(config, kv="q8_0/q8_0", max_context=128, weights="fast", token_table="host"), Aside()

    load = engine_module.load_target
    monkeypatch.setattr(engine_module, "prepare", settle)
    monkeypatch.setattr(engine_module, "load_target", lambda *given: (order.append("loaded"), load(*given))[1])
    monkeypatch.setattr(Engine, "_take_memory", lambda self, memory: order.append("taken"))
    engine = Engine.load(str(TINY), dtype="float32", max_context="auto")
    assert order == ["planned", "set aside", "loaded", "taken"]
    assert (engine.config.max_context, engine.kv[0].name, engine.config.token_table) == (128, "q8_0", "host")
    assert not {"weights", "token_table", "planned_bytes"} & engine.describe().keys()
    monkeypatch.setattr(engine, "memory", plan_of(3))
    monkeypatch.setattr(engine, "device", "cuda")
    assert engine._places() == {"weights": "fast", "token_table": "host", "planned_bytes": 3}


def plan_of(nbytes: int) -> MemoryPlan:
    return MemoryPlan({"weights": nbytes}, 0, nbytes, False, Stock(nbytes, nbytes, nbytes, 0))


def test_what_does_not_fit_is_refused_before_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "pick_device", lambda wanted: "cuda")
    monkeypatch.setattr(planning, "take_stock", lambda: Stock(24 * GIB, 20 * GIB, 20 * GIB, 0))
    for reached in ("load_target", "load_drafter"):
        monkeypatch.setattr(engine_module, reached, lambda *given: pytest.fail("loaded"))
    monkeypatch.setattr(MemoryPlan, "set_aside", lambda self: pytest.fail("allocated"))
    with pytest.raises(DeviceError, match="the longest context that does is") as refused:
        Engine.load(BIG, DRAFT, max_context=262144, kv="f16")
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


def test_the_layout_reaches_every_matrix_of_target_and_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    target, seen = "synthetic:qwen3.6-27b-tiny", []
    monkeypatch.setattr(
        engine_module, "prepare", lambda config, *_: (dataclasses.replace(config, weights="compact"), None)
    )
    monkeypatch.setattr(
        weights, "load_linear", lambda raw, request: (seen.append(request), load_linear(raw, request))[1]
    )
    Engine.load(target, f"{target}-dflash:q8_0", max_context=64, device="cpu")
    assert {(request.layout, request.exact) for request in seen} == {("compact", True), ("compact", False)}
