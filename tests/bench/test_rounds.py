"""What `bench round` measures and how it says it; on a CPU with rounds that only seem captured, on a GPU for real."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from draftwood import Engine
from draftwood.bench import rounds_picture
from draftwood.bench.measure import Sample
from draftwood.bench.suites import ops
from draftwood.bench.suites import rounds as suite
from draftwood.bench.suites.ops import Limits
from draftwood.cache.base import Keep, LayerState
from draftwood.cache.kv import KVState
from draftwood.cache.recurrent import RecurrentState
from draftwood.cache.registry import kv_pair
from draftwood.cli.main import main
from draftwood.decode.drafters.base import Guesses
from draftwood.decode.drafters.none import NoDrafter
from draftwood.decode.round import RoundOutcome
from draftwood.decode.stats import ASSUMED
from draftwood.decode.tree import ROOT_ONLY, TreeShape
from draftwood.engine.runner import Runner
from draftwood.errors import DraftwoodError, UsageError

TINY = "synthetic:qwen3.6-27b-tiny"
LIMITS = Limits("a device", bandwidth=4e12, rate=8e14)
FACTS = {
    "target": TINY, "architecture": "qwen35", "draft": "dflash:d", "draft_form": "a block", "kv": "q8_0",
    "draft_kv": "q8_0",
}  # fmt: skip


def flat(value: float) -> Sample:
    return Sample(value, value, value)


def given(**changes: Any) -> suite.Conditions:
    return replace(suite.Conditions(FACTS, True, LIMITS, "abc", 9, False, 4.5), **changes)


def run(name: str = "tree:8", context: int = 512, kv: str = "q8_0") -> suite.RoundRun:
    stages = {stage: flat(place + 1.0) for place, stage in enumerate(suite.STAGES)}
    return suite.RoundRun(name, context, 9, context + 3, Sample(15.0, 14.7, 15.3), flat(0.15), stages, 4.4, kv)


PASSES = [
    suite.PassRun(512, {1: flat(6.0), 64: flat(13.0)}, "q8_0"),
    suite.PassRun(16384, {1: flat(7.0), 64: flat(14.0)}, "q8_0"),
]


def test_names_of_rounds() -> None:
    assert suite.wanted(" Tree:22 ") == suite.Wanted("tree:22", "tree", 22)
    assert suite.wanted("ar") == suite.Wanted("ar", "ar", None)
    for text in ("tree", "tree:", "tree:0", "tree:64", "bush:3", "chain:-1", "ar:3", "", "tree:²"):
        with pytest.raises(UsageError, match="--rows-list names"):
            suite.wanted(text)


def test_the_table_has_a_part_for_each_context() -> None:
    lines = suite.table([run(), run("ar"), run(context=16384)], PASSES)
    assert [line for line in lines if line.startswith("context")] == ["context 512", "context 16K"]
    assert [line.split()[0] for line in lines if line.startswith(("tree", "ar"))] == ["tree:8", "ar", "tree:8"]
    row = next(line for line in lines if line.startswith("tree:8"))
    numbers = ["9", "15.00", "0.150", "1.0", "1.000", "2.000", "3.000", "4.000", "5.000", "4.40"]
    assert row.split()[1:] == numbers
    assert "the model's pass alone, by rows: 1 6.00, 64 13.00" in lines
    assert lines[-1] == "widest spread: 4 % of a round, 0 % of a stage, 0 % of a pass"
    assert max(map(len, lines)) <= 120


def test_several_kv_types_have_tables_of_their_own(tmp_path: Path) -> None:
    alone = [*PASSES[:1], replace(PASSES[0], kv="tq3_0")]
    runs = [run(), run(kv="tq3_0")]
    lines = suite.table(runs, alone)
    assert [line for line in lines if line.startswith("context")] == ["context 512, KV q8_0", "context 512, KV tq3_0"]
    assert sum(line.startswith("tree") for line in lines) == 2
    assert [made["kv"] for made in suite.as_json(given(), runs, alone)["rounds"]] == ["q8_0", "tq3_0"]
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install draftwood[plots]")
    rounds_picture.draw(runs, "made up", tmp_path / "r.png")


def test_what_was_assumed_or_made_up_is_called_so() -> None:
    said = "\n".join(suite.conditions(given()))
    assert f"{ASSUMED}, 4.5 on average" in said and "synthetic" in said and "random rows, not read" in said
    assert "reads 4.00 TB/s" in said and "800 TFLOP/s" in said and "abc" in said
    said = "\n".join(suite.conditions(given(assumed=None, synthetic=False, prefill=True)))
    assert (
        ASSUMED not in said and "synthetic:" in said and "real weights" in said and "a prompt of random tokens" in said
    )
    line = json.loads(json.dumps(suite.as_json(given(), [run()], PASSES)))
    assert (line["bench"], line["acceptance"], line["assumed_acceptance_length"]) == ("round", ASSUMED, 4.5)
    assert (line["context_rows"], line["synthetic"], line["rounds"][0]["start"]) == ("random", True, 515)
    assert line["rounds"][0]["stages_ms"] == {stage: place + 1.0 for place, stage in enumerate(suite.STAGES)}
    assert line["rounds"][0]["host_percent"] == 0.99 and line["passes"][1]["ms"] == {"1": 7.0, "64": 14.0}
    assert "acceptance" not in suite.as_json(given(assumed=None), [], [])


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install draftwood[plots]")
    rounds_picture.draw([run(), run("ar"), run(context=16384)], "made up", tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("outcome", "fragment"),
    [
        (RoundOutcome([1, 2, 3], 2, 5, 8), None),
        (RoundOutcome([1, 2], 2, 5, 8), "2 tokens of 2"),
        (RoundOutcome([1, 2, 3], 2, 1, 8), "accepted in a tree 1 deep"),
        (RoundOutcome([1], 0, 9, 9), "9 deep, 7 at most"),
        (RoundOutcome([1], 0, 5, 9), "9 guesses"),
        (RoundOutcome([1], 0, 5, 4), "4 guesses in a tree 5 deep"),
        (RoundOutcome([99], 0, 5, 8), "token 99"),
        (RoundOutcome([-1], 0, 5, 8), "token -1"),
    ],
)
def test_a_strange_outcome_is_told(outcome: RoundOutcome, fragment: str | None) -> None:
    found = suite.complaint(outcome, TreeShape("best_first", 8), 7, 99)
    assert found is None if fragment is None else fragment in (found or "")


def test_plain_decoding_guesses_nothing() -> None:
    assert suite.complaint(RoundOutcome([4], 0, 0, 0), ROOT_ONLY, 0, 99) is None
    assert suite.complaint(RoundOutcome([4], 0, 1, 1), ROOT_ONLY, 15, 99) is not None


class Guesser(NoDrafter):
    """Candidates 2, 3, 4 at every one of seven depths, without the host."""

    name = "guesser"
    block_size = 8
    max_depth = 7

    def guess(self, pending: Tensor, shape: TreeShape) -> Guesses:
        if shape == ROOT_ONLY:
            return super().guess(pending, shape)
        return Guesses(torch.arange(2, 5).repeat(7, 1), torch.tensor([-0.5, -1.0, -3.0]).repeat(7, 1))


class StepByStep(Runner):
    """Rounds that are not captured, with a row where a captured one leaves it."""

    def captured(self, shape: TreeShape) -> Any:
        row = torch.zeros(0, dtype=torch.int64)

        def replay() -> None:
            made.row = self.rounds.run(shape)

        made = SimpleNamespace(graph=replay, row=row)
        self._captured[shape] = made
        return made

    def round(self, shape: TreeShape) -> RoundOutcome:
        made = self.captured(shape)
        made.graph()
        return self.rounds.outcome(made.row)


def on_the_host(cls: type[LayerState], states: Sequence[Any]) -> Keep:
    """`keep_together` of states that commit on the host, which count on their own."""

    def keep(path: Tensor, count: Tensor, committed: Tensor) -> None:
        for state in states:
            state.commit(path, int(count))
            state.length -= int(count)

    return keep


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The tiny model on the CPU, whose rounds pass for captured ones of a few milliseconds."""

    def replayed(graphs: Sequence[Callable[[], object]]) -> list[float]:
        for graph in graphs:
            graph()
        return [0.5] * len(graphs)

    def captured(action: Callable[[], object], warm: bool = False) -> Callable[[], object]:
        return action

    for kind in (KVState, RecurrentState):
        monkeypatch.setattr(kind, "keep_together", classmethod(on_the_host))
    monkeypatch.setattr(RecurrentState, "truncate", forgiving)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(suite, "Runner", StepByStep)
    monkeypatch.setattr(suite, "_replayed", replayed)
    monkeypatch.setattr(suite, "capture", captured)
    engine = Engine.load(TINY, max_context=2048, dtype="float32")
    engine.drafter = Guesser()
    return engine


def forgiving(state: RecurrentState, length: int) -> None:
    """`truncate` to nothing, as on a GPU."""
    assert not length
    state.length = 0


def test_rounds_are_gated_and_timed(tiny: Engine) -> None:
    timed = suite.Rounds(tiny, 1024, 3.5, prefill=False)
    runs, names = [], ("tree:20", "chain:7", "ar")
    for name in names:
        timed.gate(suite.wanted(name))
    timed.start(128)
    alone = timed.passes(128, 2)
    assert list(alone.passes) == list(suite.PASS_ROWS)
    for name in names:
        runs.append(timed.measure(suite.wanted(name), 128, 9))
    assert [made.rows for made in runs] == [21, 8, 1]
    assert all(list(made.stages) == list(suite.STAGES) for made in runs)
    assert all(3 <= made.tokens <= 4 and 128 < made.start <= 132 for made in runs[:2])
    assert runs[2].tokens == 1 and runs[2].start == 129
    assert timed.sequence.length == 129 + 2 * 9 + 10
    assert runs[0].device.middle == 0.5 and runs[0].stages["verify"].middle == 0.5
    assert len(suite.table(runs, [alone])) == 2 + len(names) + 5


def test_on_the_command_line(
    tiny: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install draftwood[plots]")
    loads: list[Any] = []

    def opened(*arguments: Any, **options: Any) -> Engine:
        loads.append((arguments, options))
        tiny.kv = kv_pair("/".join(arguments[2]))
        return tiny

    monkeypatch.setattr("draftwood.cli.bench.rounds.open_engine", opened)
    monkeypatch.setattr(ops, "measure_limits", lambda: LIMITS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    flags = ["--rows-list", "tree:5,ar", "--contexts", "64,0.125K", "--assume-acceptance", "2.5", "--kv", "f16,f32"]
    assert main(["bench", "round", *flags, "--png", str(tmp_path / "r.png")]) == 0
    assert [arguments[2] for arguments, _ in loads] == [("f16", "f16"), ("f32", "f32")]
    assert [options.pop("again") for _, options in loads] == [False, True]
    arguments, options = loads[0]
    assert arguments[:2] == ("synthetic:qwen3.6-27b", "synthetic:qwen3.6-27b-dflash:q8_0")
    assert {name: value for name, value in options.items() if value is not None} == {"assume_acceptance": 2.5}
    assert arguments[5] == "cuda"
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[-1])
    assert [(row["kv"], row["context"], row["round"]) for row in line["rounds"]] == [
        (kv, context, name) for kv in ("f16", "f32") for context in (64, 128) for name in ("tree:5", "ar")
    ]
    assert line["acceptance"] == ASSUMED and ASSUMED in out.splitlines()[2]
    assert (tmp_path / "r.png").exists()


def test_a_read_context_grows(tiny: Engine) -> None:
    timed = suite.Rounds(tiny, 1024, None, prefill=True)
    timed.start(100)
    starts = [timed.measure(suite.wanted(name), 100, 9).start for name in ("ar", "ar")]
    assert starts == [101, 101 + 28 + 1]


def test_rounds_that_differ_show_no_time(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    timed, calls = suite.Rounds(tiny, 1024, None, prefill=False), iter(range(2, 99))
    monkeypatch.setattr(suite, "_begin", lambda runner: runner.pending.fill_(next(calls)))
    with pytest.raises(DraftwoodError, match="differ"):
        timed.gate(suite.wanted("ar"))


def test_shapes_that_cannot_be_are_refused(tiny: Engine) -> None:
    timed = suite.Rounds(tiny, 256, 5.0, prefill=False)
    with pytest.raises(UsageError, match="chains have 7"):
        timed.shape(suite.wanted("chain:9"))
    with pytest.raises(UsageError, match=r"is 5, but a round with 3 guesses decides at most 4"):
        timed.shape(suite.wanted("tree:3"))
    assert timed.shape(suite.wanted("tree:9")).chain_seed == "full"
    assert timed.shape(suite.wanted("ar")) == ROOT_ONLY


def test_rounds_on_the_host_are_refused() -> None:
    engine = Engine.load(TINY, max_context=128, dtype="float32")
    with pytest.raises(UsageError, match="times captured rounds, which this arithmetic or KV type does not"):
        suite.Rounds(engine, 128, None, prefill=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said without a GPU")
@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        ([], "this machine has none"),
        (["--rows-list", "tree:64"], "1 to 63 guesses"),
        (["--rows-list", "ar,ar"], "once"),
        (["--contexts", "many"], "--contexts is 'many'"),
        (["--assume-acceptance", "0.5"], "at least 1"),
        (["--repeats", "3"], "at least 9"),
        (["--kv", "q9"], "unknown KV type 'q9'"),
        (["--kv", "f16", "-ctk", "q8_0"], "give one of the two"),
    ],
)
def test_bad_flags(flags: list[str], fragment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "round", *flags]) == 2
    assert fragment in (said := capsys.readouterr().err) and said.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.parametrize("extra", [["--assume-acceptance", "3.5", "-ctk", "q8_0"], ["--prefill"]])
def test_on_a_gpu(gpu: str, extra: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--target", TINY, "--draft", f"{TINY}-dflash:q8_0", "--contexts", "128,512", *extra]
    assert main(["bench", "round", *flags]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["round"] for row in line["rounds"]] == ["chain:15", "tree:8", "tree:22", "tree:40", "tree:63", "ar"] * 2
    assert all(row["device_ms"] > 0 and min(row["stages_ms"].values()) > 0 for row in line["rounds"])
    if "--prefill" not in extra:
        assert all(3 <= row["acceptance_length"] <= 4 for row in line["rounds"] if row["round"] != "ar")
