"""`bench ctx` and `bench guide`: the growing prompt, what is said of it, and the two ways to end early."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draftwood import Engine, SamplingParams
from draftwood.bench import ctx_picture, ctx_report, guide_report, memory
from draftwood.bench.clock import Clock, OutOfTime, duration, parse_limit
from draftwood.bench.measure import Sample
from draftwood.bench.memory import Memory
from draftwood.bench.prompts import long
from draftwood.bench.suites import ctx as suite
from draftwood.bench.suites import guide as guides
from draftwood.bench.suites.ctx import Decoded, Point, Row, Series, Sweep, Trial
from draftwood.cache.registry import kv_pair
from draftwood.cli.bench.measurement import Job, _whole
from draftwood.cli.main import main
from draftwood.decode.round import Decoder
from draftwood.decode.stats import ASSUMED
from draftwood.decode.tree import ROOT_ONLY, TreeShape
from draftwood.engine.config import EngineConfig
from draftwood.engine.memory import MemoryPlan, Stock
from draftwood.engine.sources import open_target
from draftwood.errors import DraftwoodError, UsageError
from draftwood.planner import inventory
from draftwood.planner.hardware import GIB

TINY = "synthetic:qwen3.6-27b-tiny"
CHAIN = TreeShape("chain", budget=7)
FACTS = {
    "target": "a.gguf", "architecture": "qwen35", "draft": "q8_0", "draft_form": "a block", "draft_kv": "q8_0",
    "device": "a card", "threads": 1, "dtype": "auto", "weight_form": "packed",
}  # fmt: skip
PROMPT = long.LongPrompt([1, 2], "two tokens", "ab" * 32)


def flat(value: float) -> Sample:
    return Sample(value, value, value)


def decoded(ms: float, length: float = 1.0) -> Decoded:
    return Decoded((1, 2), flat(ms), length, False)


def row(context: int, plain: float = 10.0, ms: float = 20.0, used: float | None = None) -> Row:
    found = None if used is None else Memory(int(used * GIB), 20 * GIB)
    return Row(Point(context, context), context / 1000, decoded(plain), decoded(ms, 5.0), found)


def series(*rows: Row, kv: str = "q8_0", draft: str = "q8_0") -> Series:
    return Series(kv, 8.5, draft, 1 << 18, list(rows))


def given(**changes: Any) -> ctx_report.Conditions:
    trial = Trial("tree:22", TreeShape("best_first", budget=22), 128)
    return replace(ctx_report.Conditions(FACTS, True, trial, PROMPT, "abc"), **changes)


@pytest.mark.parametrize(
    ("contexts", "tokens"),
    [([4096, 100], [64, 3968]), ([262_144], [262_016]), ([128], [128])],
)
def test_whole_granules_that_leave_room_for_the_answer(contexts: list[int], tokens: list[int]) -> None:
    ends = 262_144 if contexts == [262_144] else 4096
    assert [point.tokens for point in suite.points(contexts, 128, ends)] == tokens


@pytest.mark.parametrize(
    ("contexts", "fragment"),
    [
        ([8192], "names 8,192 tokens, but the model's context ends at 4,096"),
        ([63], "less than 64 to read"),
        ([128, 130], "128 and 130, but for both 128 tokens are read"),
        ([4095, 4096], "name one of them"),
    ],
)
def test_lengths_that_cannot_be(contexts: list[int], fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        suite.points(contexts, 128, 4096)


def test_limits_by_the_clock() -> None:
    assert [parse_limit(text) for text in ("90s", " 8M", "1.5h", "480")] == [90, 480, 5400, 480]
    for text in ("", "m", "0", "-1", "8 days", "1e3", "49h", "²"):
        with pytest.raises(UsageError, match="--limit is"):
            parse_limit(text)
    assert [duration(s) for s in (0.2, 45, 425, 7800)] == ["1 s", "45 s", "7 min 5 s", "2 h 10 min"]
    Clock().check()
    late = Clock(1e-9)
    assert late.elapsed > 0
    with pytest.raises(OutOfTime):
        late.check()


def tiny(device: str, draft: str | None, **options: Any) -> Engine:
    return Engine.load(TINY, draft, max_context=384, device=device, **options)


@pytest.mark.parametrize("draft", ["lookup", f"{TINY}-dflash:q8_0"])
def test_decoding_leaves_the_growing_prompt_as_it_was(device: str, draft: str) -> None:
    """Answers at every length are those of a request of its own, and the states at the end those of one reading."""
    engine = tiny(device, draft, kv="f16")
    at, trial = [Point(n, n) for n in (64, 192, 320)], Trial("chain:7", CHAIN, 24, repeats=2)
    ids = torch.tensor(long.repeated(engine.tokenizer, 320).ids)
    labels: list[str] = []
    sweep = Sweep(engine, draft, ids, at, trial, Clock())
    assert sweep.estimate() > 0
    rows = list(sweep.run(labels.append))
    assert [found.point for found in rows] == at and rows == sweep.series.rows
    assert len(labels) == 6 and sweep.series.capacity == 384
    left = sweep.sequence.snapshot()
    params = SamplingParams(max_tokens=25, ignore_eos=True)  # reading decides the first one
    for found in rows:
        own = engine.generate(ids[: found.point.tokens].tolist(), params, method="ar").token_ids[1:]
        assert list(found.plain.token_ids) == own and not found.differences
        assert found.drafted is not None and list(found.drafted.token_ids) == own
        assert found.read_seconds > 0 and found.plain.acceptance_length == 1
        assert (found.memory is None) == (device == "cpu")
    fresh = Sweep(engine, draft, ids, at[-1:], trial, Clock())
    fresh.drafter.start(fresh._ids)
    fresh._read(fresh._ids)
    assert same(fresh.sequence.snapshot(), left)


def same(one: Any, other: Any) -> bool:
    """Whether two snapshots are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_a_drafter_without_marks_says_so() -> None:
    from tests.fakes import RecordingDrafter

    with pytest.raises(NotImplementedError, match="recording cannot be marked"):
        RecordingDrafter(()).mark()


def test_rounds_that_differ_are_told() -> None:
    engine, trial = tiny("cpu", "lookup"), Trial("tree:7", CHAIN, 3)
    sweep = Sweep(engine, "lookup", torch.arange(64), [Point(64, 64)], trial, Clock())
    texts = [[[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [1, 2, 4]]]
    assert list(sweep._differences(Point(64, 64), texts)) == ["f32, 64, tree:7: token 2 is 4 instead of 3"]


def test_an_assumed_acceptance_needs_captured_rounds() -> None:
    trial = Trial("chain:7", CHAIN, 3, assumed=2.0)
    with pytest.raises(UsageError, match="leave them or --assume-acceptance out"):
        Sweep(tiny("cpu", "lookup"), "lookup", torch.arange(64), [Point(64, 64)], trial, Clock())


def test_types_without_captured_rounds_are_told_before_the_long_part() -> None:
    with pytest.raises(UsageError, match="which KV type q4_0 or this arithmetic does not allow"):
        suite.require_captured(tiny("cpu", "lookup"), [kv_pair("q4_0")])


def test_plain_decoding_alone() -> None:
    trial = Trial("ar", ROOT_ONLY, 3)
    sweep = Sweep(tiny("cpu", None), "none", torch.arange(64), [Point(64, 64)], trial, Clock())
    [found] = sweep.run(lambda label: None)
    assert found.drafted is None and sweep.series.draft == "none"
    lines = ctx_report.table(sweep.series, trial, [sweep.series])
    assert lines[1].split() == ["context", "read", "s", "tok/s", "plain", "ms", "tok/s"]


def test_prompts(tmp_path: Path) -> None:
    class Bytes:
        adds_bos = True

        def encode(self, text: str, special: bool, add_bos: bool = False) -> list[int]:
            return [999] * add_bos + list(text.encode())

    made = long.repeated(Bytes(), 4000)  # type: ignore[arg-type]
    once = len(long.REQUEST.encode()) + 2
    assert len(made.ids) == 4000 and made.ids[0] == 999 and made.ids[1 : 1 + once] == made.ids[1 + once : 1 + 2 * once]
    (path := tmp_path / "t.txt").write_text("abc", encoding="utf-8")
    assert long.of_file(Bytes(), path, 3).ids == [999, 97, 98]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--text gives 4 tokens"):
        long.of_file(Bytes(), path, 5)  # type: ignore[arg-type]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DraftwoodError, match="not text in UTF-8"):
        long.of_file(Bytes(), path, 3)  # type: ignore[arg-type]


def test_the_table_fits_a_terminal() -> None:
    made = series(row(128, used=18), row(131072, 99.99, 999.99, 19.9))
    lines = ctx_report.table(made, given().trial, [made])
    assert lines[0] == "KV q8_0 (8.5 bits a value), tree:22, room for 256K tokens"
    assert lines[3].split() == ["128", "0.13", "1000", "10.00", "100.0", "20.00", "250.0", "5.00", "2.50x", "18.00"]
    assert lines[-1] == "peak 19.90 GiB of 20.00 GiB planned: 99.5 %"
    assert max(map(len, lines)) <= 80
    less = series(replace(row(4096), point=Point(4096, 3968)))
    assert ctx_report.table(less, given().trial, [less])[-1] == "of 4K 3,968 tokens were read before the answer"


def test_types_beside_each_other() -> None:
    both = [series(row(512), row(131072, 15, 30)), series(row(512, 11, 21), row(131072, 12, 24), kv="tq3_0")]
    lines = ctx_report.comparison(both, given().trial)
    assert lines == [
        "ms a round, plain",
        "  q8_0   512 10.00 (1.00x), 128K 15.00 (1.50x)",
        "  tq3_0  512 11.00 (1.00x), 128K 12.00 (1.09x)",
        "  tq3_0 over q8_0: 512 1.10x, 128K 0.80x",
        "ms a round, tree:22",
        "  q8_0   512 20.00 (1.00x), 128K 30.00 (1.50x)",
        "  tq3_0  512 21.00 (1.00x), 128K 24.00 (1.14x)",
        "  tq3_0 over q8_0: 512 1.05x, 128K 0.80x",
    ]
    told = replace(given().trial, assumed=4.5)
    assert f"ms a round, tree:22, {ASSUMED}" in ctx_report.comparison(both, told)
    drafts = [series(row(512)), series(row(512), draft="q4_k_m")]
    assert any("q8_0 + q4_k_m draft over q8_0 + q8_0 draft" in line for line in ctx_report.comparison(drafts, told))


def test_what_was_assumed_left_out_or_cut_short_is_called_so() -> None:
    told = given(trial=replace(given().trial, assumed=4.5), ended="LIMIT of 8 min 0 s REACHED: until then")
    some = [series(row(512))]
    said = "\n".join(ctx_report.conditions(told))
    assert ASSUMED in said and "4.5 on average" in said and "synthetic" in said
    assert said.endswith("LIMIT of 8 min 0 s REACHED: until then")
    legend = "\n".join(ctx_report.legend(told, some))
    assert ASSUMED in legend and "those of plain decoding" not in legend.replace("over those of plain decoding", "")
    assert "on a GPU with --dtype auto only" in legend and "GiB" not in legend
    assert "GiB" in "\n".join(ctx_report.legend(told, [series(row(512, used=3))]))
    line = json.loads(json.dumps(ctx_report.as_json(told, some)))
    assert (line["bench"], line["complete"], line["acceptance"]) == ("ctx", False, ASSUMED)
    assert line["series"][0]["rows"][0]["drafted"]["tokens_per_second"] == 250.0
    assert "acceptance" not in ctx_report.as_json(given(), some) and ASSUMED in ctx_report.caption(told)
    flagged = [series(replace(row(512), plain=replace(decoded(10.0), degenerate=True)))]
    assert "\n- `*`: the answer" in ctx_report.markdown(told, flagged)
    assert "| 512 |" in ctx_report.markdown(told, some) and ASSUMED in ctx_report.markdown(told, some)


@pytest.mark.parametrize("used", [None, 18.0])
def test_the_picture(used: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A title as long as two drafts make it stays inside."""
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install draftwood[plots]")
    figure = ctx_picture.blank()
    monkeypatch.setattr(ctx_picture, "blank", lambda: figure)
    drafts = ["q8_0", "q4_k_m"]
    facts = {**FACTS, "target": "synthetic:qwen3.6-27b", "draft": ", ".join(f"{TINY}-dflash:{kind}" for kind in drafts)}
    told = given(facts=facts, trial=replace(given().trial, assumed=4.5))
    both = [series(row(512, used=used), row(4096, used=used), draft=draft) for draft in drafts]
    ctx_picture.draw(both, ctx_report.caption(told), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    [title], [legend] = figure.texts, figure.legends
    assert figure.bbox.x0 <= title.get_window_extent().x0 and title.get_window_extent().x1 <= figure.bbox.x1
    assert legend.get_title().get_text() == "KV type and draft"


@torch.inference_mode()
def test_only_acceptance_that_was_found_is_flattered_by_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweep, "_run", lambda *a, **k: ([7] * 64, 16, 1.0))
    at, trial = [Point(64, 64)], Trial("chain:7", CHAIN, 64)
    sweep = Sweep(tiny("cpu", "lookup"), "lookup", torch.arange(64), at, trial, Clock())
    for assumed, flagged in ((None, True), (4.5, False)):
        sweep.trial = replace(trial, assumed=assumed)
        found = sweep._row(at[0], 1.0, torch.tensor(7))
        assert found.drafted is not None and (found.plain.degenerate, found.drafted.degenerate) == (True, flagged)


def test_loading_counts_where_the_time_for_all_is_told() -> None:
    jobs = [Job("d", kv_pair("q8_0"), (Point(n, n),)) for n in (1024, 1024, 2048)]
    assert _whole(jobs, 10, 30) == ", all 3 with loading about 1 min 40 s if they go alike"
    assert _whole(jobs[:1], 10, 30) == ""


def test_the_memory_is_the_plan_s_and_the_driver_s(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny("cpu", None)
    assert memory.measure(engine) is None
    plan = MemoryPlan({"weights": 30, "driver": 10}, 0, 100, True, Stock(100, 95, 95, 0))
    monkeypatch.setattr(engine, "memory", plan)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60, 100))
    assert memory.measure(engine) == Memory(35, 40)


def test_every_shape_has_run_before_memory_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice at least: the second round of a shape is the one that is captured."""
    ran: list[TreeShape] = []
    seen: list[list[TreeShape]] = []
    round_of, read_of = Decoder.round, Sweep._read

    def noted(self: Decoder, shape: TreeShape) -> Any:
        ran.append(shape)
        return round_of(self, shape)

    def read(self: Sweep, ids: torch.Tensor) -> Any:
        if len(ids) == 256:
            seen.append(list(ran))
        return read_of(self, ids)

    monkeypatch.setattr(Decoder, "round", noted)
    monkeypatch.setattr(Sweep, "_read", read)
    trial = Trial("chain:7", CHAIN, 3)
    sweep = Sweep(tiny("cpu", "lookup"), "lookup", torch.arange(256), [Point(256, 256)], trial, Clock())
    list(sweep.run(lambda label: None))
    [before] = seen
    assert before.count(ROOT_ONLY) >= 2 and before.count(CHAIN) >= 2


def test_what_frees_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny("cpu", f"{TINY}-dflash:q8_0", draft_kv="q4_0")
    monkeypatch.setattr(engine, "config", replace(engine.config, weights="compact", token_table="host"))
    sweep = Sweep(engine, "q8_0", torch.arange(64), [Point(64, 64)], Trial("chain:7", CHAIN, 3), Clock())
    tight = sweep.series
    assert tight.places == ("table on host", "compact weights", "draft K/V q4_0")
    named = "q8_0, table on host, compact weights, draft K/V q4_0"
    both = [series(row(512)), replace(series(row(4096)), places=tight.places)]
    assert ctx_report.title(both[1], given().trial, both).startswith(f"KV {named} (8.5 bits")
    assert ctx_report.title(both[0], given().trial, both).startswith("KV q8_0 (8.5 bits")
    assert ctx_report.series_json(both[1])["places"] == list(tight.places)
    assert ctx_report.title(both[1], given().trial, both[1:]).endswith(
        ", table on host, compact weights, draft K/V q4_0"
    )


def room(whole: float) -> guides.Room:
    source = open_target("synthetic:qwen3.6-27b")
    target = inventory.target_of(source, "27b")
    return guides.Room(target, int(24 * GIB), int(whole * GIB), EngineConfig("synthetic:qwen3.6-27b"), 128)


def test_the_guide_picks_by_the_planner_s_rule_from_measured_speeds() -> None:
    points = [Point(4096, 4096), Point(262_144, 262_016)]
    there = room(22.0)
    pairs = [kv_pair("q8_0"), kv_pair("tq3_0")]
    planned = there.weigh("synthetic:qwen3.6-27b-dflash:q8_0", "q8_0", pairs, points)
    assert planned.fitting(pairs[0]) == [(points[0],)] and planned.fitting(pairs[1])[0] == (points[0],)
    guides.require_some([planned], there)
    found = [series(row(4096)), series(row(4096, 5, 10), kv="tq3_0")]
    first, last = guides.entries([planned], found, points)
    assert first.pick is not None and first.pick.name == "q8_0 + q8_0" and first.pick.guesses
    assert first.fastest is not None and first.fastest.name == "tq3_0 + q8_0"
    assert last.pick is None
    lines = guide_report.table([first, last], given())
    assert lines[2].split() == ["4K", "q8_0", "+", "q8_0", "tree:22", "250.0", "5.00", "4.10",
                                f"{first.pick.planned.total / GIB:.2f}", "tq3_0", "+", "q8_0", "2.00x"]  # fmt: skip
    assert "256K: no room for (planned GiB) q8_0 + q8_0" in "\n".join(lines)
    line = json.loads(json.dumps(guide_report.as_json([first, last], given(), there.usable, found)))
    assert line["bench"] == "guide" and line["guide"][0]["pick"]["kv"] == "q8_0" and line["guide"][1]["pick"] is None
    assert line["guide"][1]["candidates"][0]["fits"] is False
    text = guide_report.markdown([first, last], given(), guide_report.fits(there, "--vram"), found)
    assert "| 4K | q8_0 + q8_0 | tree:22 |" in text and "### KV q8_0" in text and "22.00 of 24.00 GiB (--vram)" in text
    assert text.count("- target a.gguf") == 1 and max(map(len, lines)) <= 110


def test_what_one_engine_can_measure_is_kept_apart_by_levers() -> None:
    points = [Point(k << 10, k << 10) for k in (4, 32, 64, 100, 256)]
    planned = room(23.25).weigh("synthetic:qwen3.6-27b-dflash:q8_0", "q8_0", [kv_pair("q8_0")], points)
    groups = planned.fitting(kv_pair("q8_0"))
    assert groups == [(points[0], points[1]), (points[2],), (points[3],)]
    levers = [planned.rows[group[-1], kv_pair("q8_0")].levers for group in groups]
    assert levers == [(), ("host_table",), ("host_table", "compact_weights")]
    [entry] = guides.entries([planned], [series(row(100 << 10))], points[3:4])
    assert "100K: q8_0 + q8_0 with table on host, compact weights" in guide_report.notes([entry], given())
    line = guide_report.as_json([entry], given(), 1, [])
    assert line["guide"][0]["pick"]["levers"] == ["host_table", "compact_weights"]
    named = replace(room(23.25), config=EngineConfig("synthetic:qwen3.6-27b", weights="fast", token_table="host"))
    kept = named.weigh("synthetic:qwen3.6-27b-dflash:q8_0", "q8_0", [kv_pair("q8_0")], points)
    assert kept.fitting(kv_pair("q8_0")) == [tuple(points[:3])]  # what is named is no lever


def test_guesses_that_do_not_pay_are_not_advised() -> None:
    planned = room(24.0).weigh("lookup", "lookup", [kv_pair("q8_0")], [Point(4096, 4096)])
    [entry] = guides.entries([planned], [series(row(4096, 1, 20), draft="lookup")], [Point(4096, 4096)])
    assert entry.pick is not None and not entry.pick.guesses and entry.pick is entry.fastest
    assert guide_report.table([entry], given())[2].split()[4] == "ar"


def test_a_guide_without_room() -> None:
    there = room(9.0)
    planned = there.weigh("lookup", "lookup", [kv_pair("q8_0")], [Point(4096, 4096)])
    with pytest.raises(DraftwoodError, match="nothing fits: q8_0 takes"):
        guides.require_some([planned], there)
    [entry] = guides.entries([planned], [], [Point(4096, 4096)])
    assert "nothing fits" in guide_report.table([entry], given())[2]


COMMON = ["--device", "cpu", "--contexts", "64,128,256", "--n-gen", "8"]


def last_line(out: str) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(out.splitlines()[-1])
    return line


@pytest.fixture
def model(vendored: Path) -> str:
    return str(vendored / "models" / "l-b.Q4_1.gguf")


def test_ctx_on_the_command_line(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install draftwood[plots]")
    out = tmp_path / "made" / "here"
    flags = [*COMMON, "--kv", "q8_0,f16/q8_0", "--round", "tree:5", "--repeats", "2", "--out", str(out)]
    assert main(["bench", "ctx", "--target", model, *flags]) == 0
    captured = capsys.readouterr()
    line = last_line(captured.out)
    assert (line["bench"], line["round"], line["complete"], line["repeats"]) == ("ctx", "tree:5", True, 2)
    assert [one["kv"] for one in line["series"]] == ["q8_0", "f16/q8_0"]
    assert all([made["context"] for made in one["rows"]] == [64, 128, 256] for one in line["series"])
    assert "q8_0, draft lookup: at most about" in captured.err and "all 2 with loading about" in captured.err
    assert json.loads((out / "ctx.json").read_text()) == line
    assert "## KV q8_0" in (out / "ctx.md").read_text() and (out / "ctx.png").read_bytes().startswith(b"\x89PNG")


def test_ctx_with_several_drafts_and_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path := tmp_path / "t.txt").write_text("a story\n" * 100, encoding="utf-8")
    flags = ["--draft-quant", "q8_0,Q4_K_M", "--text", str(path), "-ctk", "f16", "--contexts", "64", "--n-gen", "2"]
    assert main(["bench", "ctx", "--target", TINY, "--device", "cpu", *flags]) == 0
    line = last_line(capsys.readouterr().out)
    assert [(one["kv"], one["draft"]) for one in line["series"]] == [("f16", "q8_0"), ("f16", "q4_k_m")]
    assert line["synthetic"] and line["prompt"] == "the text t.txt"


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ends the measurement, by the limit or by Ctrl-C, with the nth row."""

    def arrange(rows: int, error: BaseException | type[BaseException]) -> None:
        made, row_of = itertools.count(), Sweep._row

        def counted(self: Sweep, *arguments: Any) -> Row:
            if next(made) == rows:
                raise error
            return row_of(self, *arguments)

        monkeypatch.setattr(Sweep, "_row", counted)

    yield arrange


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(OutOfTime, 0, "LIMIT of 5 min 0 s REACHED"), (KeyboardInterrupt, 130, "INTERRUPTED")],
)
@pytest.mark.parametrize("command", ["ctx", "guide"])
def test_an_early_end_shows_the_rows_done(
    command: str, error: type[BaseException], code: int, said: str, model: str, ending: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ending(4, error)
    assert main(["bench", command, "--target", model, *COMMON, "--kv", "f16,q8_0", "--limit", "5m"]) == code
    out = capsys.readouterr().out
    line = last_line(out)
    assert [len(one["rows"]) for one in line["series"]] == [3, 1] and line["complete"] is False
    assert f"{said}: what was measured until then" in out


def test_an_early_end_with_nothing_to_show(model: str, ending: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ending(0, KeyboardInterrupt)
    assert main(["bench", "ctx", "--target", model, *COMMON]) == 130
    assert capsys.readouterr().out == ""
    assert main(["bench", "ctx", "--target", model, *COMMON, "--limit", "0.001s"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "passed before a first row" in captured.err


def test_a_type_without_room_leaves_the_others(model: str, ending: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ending(1, torch.OutOfMemoryError("CUDA out of memory. Tried\nthis"))
    assert main(["bench", "ctx", "--target", model, *COMMON, "--kv", "f16,q8_0"]) == 0
    captured = capsys.readouterr()
    assert [len(one["rows"]) for one in last_line(captured.out)["series"]] == [1, 3]
    assert "NO MEMORY for f16 with lookup, so what is said of it is not whole" in captured.out
    assert "f16 with lookup: there is not enough memory for it" in captured.err and "Tried" not in captured.err
    ending(0, torch.OutOfMemoryError("CUDA out of memory."))
    assert main(["bench", "ctx", "--target", model, *COMMON]) == 1
    assert "there is not enough memory" in capsys.readouterr().err


def test_different_tokens_show_no_speed(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Sweep, "_differences", lambda *a: iter(["f32, 64, chain:15: token 0 is 1 instead of 2"]))
    assert main(["bench", "ctx", "--target", model, *COMMON]) == 1
    captured = capsys.readouterr()
    assert "token 0 is 1" in captured.out and "tok/s" not in captured.out and "promise" in captured.err


def test_guide_on_the_command_line(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install draftwood[plots]")
    flags = ["--kv", "q8_0,q4_0", "--vram", "2GiB", "--out", str(tmp_path)]
    assert main(["bench", "guide", "--target", model, *COMMON, *flags]) == 0
    out = capsys.readouterr().out
    line = last_line(out)
    assert line["bench"] == "guide" and [entry["context"] for entry in line["guide"]] == [64, 128, 256]
    assert all(entry["pick"]["kv"] == "q8_0" and len(entry["candidates"]) == 2 for entry in line["guide"])
    assert "1.94 of 2.00 GiB (--vram)" in out and json.loads((tmp_path / "guide.json").read_text()) == line
    assert (tmp_path / "guide.md").exists() and (tmp_path / "guide.png").exists()


@pytest.mark.gpu
def test_ctx_on_a_gpu(gpu: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--draft-quant", "q8_0", "--kv", "q8_0,f16", "--assume-acceptance", "3.5", "--contexts", "128,512,4K"]
    assert main(["bench", "ctx", "--target", TINY, *flags]) == 0
    out = capsys.readouterr().out
    line = last_line(out)
    rows = [made for one in line["series"] for made in one["rows"]]
    # The 128 tokens that a run decides at least are 37 rounds, whose lengths have the mean to half a token in all.
    assert ASSUMED in out and all(abs(made["drafted"]["acceptance_length"] - 3.5) < 1 / 37 for made in rows)
    assert all(made["plain"]["acceptance_length"] == 1 and made["peak_bytes"] > 1 << 28 for made in rows)


@pytest.mark.gpu
def test_ctx_without_an_assumption_on_a_gpu(gpu: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The gate holds: captured rounds give plain decoding's tokens at every length."""
    assert main(["bench", "ctx", "--target", TINY, "--draft-quant", "q8_0", "--kv", "q8_0", "--round", "tree:22"]) == 0
    assert [made["context"] for made in last_line(capsys.readouterr().out)["series"][0]["rows"]] == [128, 4096]
