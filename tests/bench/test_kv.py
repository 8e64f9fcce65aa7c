"""What `bench kv` measures: against figures worked out another way, on small real models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch

from draftwood import Engine, SamplingParams
from draftwood.bench.prompts import running_text
from draftwood.bench.prompts.humaneval import Prompt
from draftwood.bench.suites.he import SuiteResult
from draftwood.bench.suites.kv import MIXED, UNROTATED, Case, Fidelity, MeteredPlane, Row, cases, compare
from draftwood.cache.kv import KVState
from draftwood.cache.registry import KV_TYPES, kv_pair, load_plane
from draftwood.engine.fetch import cached
from draftwood.errors import DraftwoodError, UsageError

TEXTS = [[(7 * i * i + 3 * i + w) % 500 for i in range(length)] for w, length in enumerate((150, 90))]
PROMPTS = [Prompt("first", "def first(a, b):"), Prompt("second", "import os\n\n\ndef second(")]


def silent(label: str) -> None:
    pass


def load(vendored: Path, name: str = "l-b.Q4_1", **options: Any) -> Engine:
    return Engine.load(target=str(vendored / "models" / f"{name}.gguf"), dtype="float32", **options)


@pytest.fixture(scope="module")
def engine(vendored: Path) -> Engine:
    return load(vendored)


@pytest.fixture(scope="module")
def rows(engine: Engine) -> dict[str, Row]:
    """Every case, read over both texts."""
    measured = Fidelity(engine, cases(None, engine.target.model.spec.head_dim))
    measured.read(TEXTS, silent)
    assert measured.tokens == sum(map(len, TEXTS))
    return {row.case.label: row for row in measured.rows()}


def test_every_type_the_pairs_and_what_rotation_is_worth(rows: dict[str, Row]) -> None:
    assert next(iter(rows)) == "f16"
    assert set(rows) == {*KV_TYPES, *MIXED, *(f"{name} unrotated" for name in UNROTATED)}


def test_the_reference_does_not_differ_from_itself(rows: dict[str, Row]) -> None:
    assert (rows["f16"].kl, rows["f16"].kl_tail, rows["f16"].same_top) == (0.0, 0.0, 1.0)


def test_fewer_bits_cost_more(rows: dict[str, Row]) -> None:
    """The cache that is measured is the one that is attended: nothing else differs between these."""
    ladder = [rows[name].kl for name in ("f32", "q8_0", "q5_0", "tq4_0", "tq3_0", "tq2_0")]
    assert ladder[0] > 0 and ladder == sorted(ladder) and ladder[-1] > 100 * ladder[1]
    assert all(row.kl < row.kl_tail for name, row in rows.items() if name != "f16")
    assert rows["f32"].key_error == rows["f32"].value_error == 0.0


def test_bits_and_bytes(rows: dict[str, Row], engine: Engine) -> None:
    assert (rows["q8_0/tq3_0"].bits, rows["tq3_0"].bits) == ((8.5 + 3.25) / 2, 3.25)
    for name, row in rows.items():
        if row.case.rotated:
            state = engine.target.model.new_sequence(kv_pair(name), 64).states[0]
            assert isinstance(state, KVState)
            assert row.token_bytes == 5 * state.nbytes / state.keys.rows


@pytest.mark.parametrize("name", ["q8_0", "tq3_0", "q4_0/tq2_0"])
def test_divergence_is_that_of_the_engines_logits(name: str, vendored: Path) -> None:
    """A user's run over a type gives these odds; the divergence written out with numpy."""
    measured = Fidelity(load(vendored), cases([name], 64, unrotated=False))
    measured.read(TEXTS[:1], silent)
    odds = [
        np.asarray(load(vendored, kv=kv).logits(TEXTS[0]), np.float64) for kv in ("f16", measured.cases[-1].kv_name)
    ]
    logs = [values - np.log(np.exp(values).sum(-1, keepdims=True)) for values in odds]
    kl = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)
    row = measured.rows()[-1]
    assert row.kl == pytest.approx(kl.mean(), rel=1e-9, abs=1e-12)
    assert row.kl_tail == pytest.approx(np.quantile(kl, 0.999), rel=1e-9, abs=1e-12)
    assert row.same_top == (odds[0].argmax(-1) == odds[1].argmax(-1)).mean()


def test_divergence_of_known_odds() -> None:
    """Worked out by hand: odds of (1/2, 1/2) taken for (1/4, 3/4) are off by ln 2 - ln 3 / 2 nats."""
    expected, found = torch.zeros(70, 2), torch.tensor([1.0, 3.0]).log().repeat(70, 1)
    kl, same = compare(expected, found, lambda rows: rows)
    assert kl.tolist() == pytest.approx([np.log(2) - np.log(3) / 2] * 70)
    assert same == 0


@pytest.mark.parametrize("name", list(KV_TYPES))
@pytest.mark.parametrize("rotated", [True, False])
def test_row_errors_are_those_of_the_code(name: str, rotated: bool) -> None:
    (kind, _) = kv_pair(name)
    made = load_plane(kind)(2, 64, 64, "cpu")
    data = torch.randn(20, 2, 64, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, 64)
    plane = MeteredPlane(made, rotated)
    plane.write(data[:5], 0)
    plane.write(data[5:], 5)
    fields = getattr(made, "encode", None)
    if fields is None or rotated:
        kept = made.leave(made.read(0, 20).transpose(0, 1).contiguous())
    else:
        kept = made.decode(fields(data))  # type: ignore[attr-defined]
        assert torch.allclose(plane.enter(data), data)
    expected = (kept - data).square().sum((1, 2)).double()
    assert torch.allclose(plane.error[:20], expected, rtol=1e-3, atol=1e-12)
    assert torch.allclose(plane.size[:20], data.square().sum((1, 2)).double(), rtol=1e-5)
    assert plane.nbytes == made.nbytes


def test_rows_beyond_the_text_do_not_count(engine: Engine) -> None:
    """A text's last granule is padded: the padding is written, but is no row of the text."""
    whole, short = (Fidelity(engine, [Case(kv_pair("f16")), Case(kv_pair("tq2_0"))]) for _ in range(2))
    whole.read([TEXTS[0][:128]], silent)
    short.read([TEXTS[0][:70]], silent)
    sizes = [measured.parts[1][0].key[1] for measured in (whole, short)]
    assert sizes[1] == pytest.approx(sizes[0] * 70 / 128, rel=0.1)


def test_only_attention_layers_have_rows(vendored: Path) -> None:
    hybrid = load(vendored, "q35-c.Q4_K_M")
    spec = hybrid.target.model.spec
    measured = Fidelity(hybrid, cases(["q8_0"], spec.head_dim, unrotated=False))
    measured.read([TEXTS[1]], silent)
    f16, q8 = measured.rows()
    assert f16.kl == 0 < q8.kl
    assert f16.token_bytes == 4 * spec.kv_heads * spec.head_dim * sum(spec.attention) and not all(spec.attention)


def test_two_readings_that_differ_show_no_figure(vendored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(vendored)
    logits, calls = engine.target.model.logits, []

    def drifting(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(hidden)
        return logits(hidden) * (1 + 1e-6 * len(calls))

    monkeypatch.setattr(engine.target.model, "logits", drifting)
    with pytest.raises(DraftwoodError, match="no figure is shown"):
        Fidelity(engine, cases(["q8_0"], 64)).read(TEXTS[:1], silent)


def test_an_interrupted_window_counts_for_no_case(engine: Engine) -> None:
    measured, labels = Fidelity(engine, cases(["q8_0", "q4_0"], 64, unrotated=False)), []

    def begin(label: str) -> None:
        labels.append(label)
        if len(labels) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured.read(TEXTS, begin)
    assert labels[:5] == [f"window 1 of 2, {name}" for name in ("f16", "f16", "q8_0", "q4_0")] + ["window 2 of 2, f16"]
    assert measured.tokens == len(TEXTS[0]) and len({len(parts) for parts in measured.parts}) == 1


def test_acceptance_is_that_of_an_engine_over_these_types(vendored: Path) -> None:
    engine = load(vendored, draft="lookup")
    measured = Fidelity(engine, cases(["tq2_0"], 64))
    measured.read(TEXTS[1:], silent)
    measured.draft(PROMPTS, 24, silent)
    assert not measured.differences
    other = load(vendored, draft="lookup", kv="tq2_0")
    lengths = [
        other.generate(prompt.text, SamplingParams(max_tokens=24), method="chain").stats.acceptance_length
        for prompt in PROMPTS
    ]
    assert measured.rows()[1].acceptance_length == sum(lengths) / 2
    assert engine.config.kv == "auto"


def test_what_differs_is_said_with_its_case(engine: Engine) -> None:
    measured = Fidelity(engine, cases(["q8_0"], 64))
    measured.runs[measured.cases[1]] = SuiteResult((), ("first, chain: token 0 is 1 instead of 2",))
    assert measured.differences == ["q8_0: first, chain: token 0 is 1 instead of 2"]


def test_cases() -> None:
    found = cases(["Q8", "q8_0/turbo3", "q8_0"], 64)
    assert [case.label for case in found] == ["f16", "q8_0", "q8_0/tq3_0", "q8_0 unrotated"]
    odd = [case.label for case in cases(None, 80, unrotated=False)]
    assert odd == ["f16", "f32", "bf16", "tq4_0", "tq3_0", "tq2_0", "bf16/tq2_0", "tq4_0/tq3_0"]
    with pytest.raises(UsageError, match="multiple of 32"):
        cases(["q8_0"], 80)
    with pytest.raises(UsageError, match="unknown KV type"):
        cases(["q9"], 64)


def divergences(engine: Engine, texts: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Mean divergence of every KV type, in nats, by window."""
    measured = Fidelity(engine, cases(list(KV_TYPES), engine.target.model.spec.head_dim, unrotated=False))
    measured.read(texts, silent)
    parts = zip(measured.cases, measured.parts, strict=True)
    return {case.label: [float(part.kl.mean()) for part in of_case] for case, of_case in parts}


def demo_divergences(demo_model: Path, device: str, windows: int) -> dict[str, list[float]]:
    """Those of the demo model for windows of 2,048 tokens of real text."""
    if cached("humaneval") is None:
        pytest.skip("no HumanEval problems: run `make setup` (or `draftwood pull humaneval`)")
    engine = Engine.load(target=str(demo_model), dtype="float32", device=device, max_context=2048)
    texts = running_text.windows(engine.tokenizer, running_text.running_text(), 2048 * windows, 2048)
    return divergences(engine, texts)


@pytest.fixture(scope="module")
def on_cpu(vendored: Path) -> dict[str, list[float]]:
    """What `demo_divergences` gave on a CPU for ten windows."""
    kept: dict[str, list[float]] = json.loads((vendored / "kv" / "demo.json").read_text())
    return kept


@pytest.mark.slow
def test_divergence_of_the_demo_model(demo_model: Path, on_cpu: dict[str, list[float]]) -> None:
    """A CPU gives what was kept, here for the first window; fewer bits cost more."""
    found = demo_divergences(demo_model, "cpu", 1)
    assert found.keys() == on_cpu.keys() == {*KV_TYPES}
    for name, kl in found.items():
        assert kl == pytest.approx(on_cpu[name][:1], rel=0.02), name
    ladder = [mean(on_cpu[name]) for name in ("f16", "f32", "bf16", "q8_0", "q5_1", "q4_0", "tq3_0", "tq2_0")]
    assert ladder[0] == 0 and all(2 * less < more for less, more in pairwise(ladder))


def assert_close(found: Mapping[str, Sequence[float]], expected: Mapping[str, Sequence[float]], floor: float) -> None:
    """Means over as many windows as were read, to 5 % or the floor."""
    assert found.keys() == expected.keys()
    means = {name: (mean(kl), mean(expected[name][: len(kl)])) for name, kl in found.items()}
    off = {name: pair for name, pair in means.items() if abs(pair[0] - pair[1]) > max(0.05 * pair[1], floor)}
    assert not off, "found, expected"


@pytest.mark.gpu
def test_divergence_on_a_gpu_is_that_on_a_cpu(gpu: str, demo_model: Path, on_cpu: dict[str, list[float]]) -> None:
    """In the operations that `bench kv` takes there.

    A float32 row's last bits depend on the device, and with them a code here and there: a window's mean differs from a
    CPU's by 5 % in the root mean square, to either side, so it takes ten.
    """
    assert_close(demo_divergences(demo_model, gpu, 10), on_cpu, floor=0.0)


@pytest.mark.gpu
def test_divergence_over_kernels_is_that_on_a_cpu(
    gpu: str, demo_model: Path, on_cpu: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over rows that the kernels of a user's requests store and attend.

    Their operands are halves. What f32 keeps beyond f16 is lost, so what it diverges by is the floor. And the rows of a
    later layer differ by enough for some to get other codes, so each token's divergence scatters: of means over 4,096
    tokens by 3.5 % (halves imitated on a CPU), hence ten windows.
    """
    from draftwood.cache.device_kv import DeviceKVState

    monkeypatch.setattr("draftwood.bench.suites.kv.KVState", DeviceKVState)
    assert_close(demo_divergences(demo_model, gpu, 10), on_cpu, floor=mean(on_cpu["f32"]))
