"""The public API on tiny models: results, statistics, limits, and one sentence for every wrong argument."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from draftwood import DraftwoodError, Engine, SamplingParams
from draftwood.decode.sampling import Sampler
from draftwood.errors import FileError, FormatError, UnsupportedModelError, UsageError


@pytest.fixture(scope="module")
def tiny(vendored: Path) -> Path:
    return vendored / "models" / "l-b.Q4_1.gguf"


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Engine:
    return Engine.load(str(tiny), draft="lookup", max_context=256, dtype="float32")


REPETITIVE = [5, 6, 7, 8, 9, 10] * 6


def test_all_methods_agree_and_their_figures_add_up(engine: Engine) -> None:
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    plain = engine.generate(REPETITIVE, params, method="ar")
    assert plain.stats.rounds == 39
    assert plain.stats.acceptance_length == 1.0
    assert plain.stats.accept_percent is None
    for method, budget in (("chain", None), ("chain", 3), ("tree", 8), ("tree", 63), ("auto", None)):
        result = engine.generate(REPETITIVE, params, method=method, budget=budget)
        assert result.token_ids == plain.token_ids, method
        assert result.text == plain.text
        assert result.finish_reason == "length"
        stats = result.stats
        assert stats.emitted == 40 == len(result.token_ids)
        assert stats.acceptance_length == pytest.approx(39 / stats.rounds)
        assert stats.method == method
        assert stats.prompt_tokens == len(REPETITIVE)
        assert stats.decode_tokens_per_second > 0 < stats.prefill_tokens_per_second
    assert result.stats.reason  # auto says why


def test_auto_measures_what_it_may_choose_from_before_the_first_request(tiny: Path) -> None:
    loaded = Engine.load(str(tiny), draft="lookup", max_context=8, dtype="float32")
    policy = vars(loaded)["policy"]
    assert policy.costs.rows[0] == 1 and min(policy.costs.seconds) > 0
    assert set(policy.costs.propose) == {(arm.shape.kind, arm.depth) for arm in policy.arms[1:]}
    assert {(arm.method, arm.depth) for arm in policy.arms} >= {("ar", 0), ("chain", 1), ("chain", 15), ("tree", 7)}
    assert "policy" not in vars(Engine.load(str(tiny), max_context=8, dtype="float32"))
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    assert loaded.generate([5, 6], params).token_ids == loaded.generate([5, 6], params, method="ar").token_ids


def test_the_stream_is_the_result_in_pieces(engine: Engine) -> None:
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=3)
    events = list(engine.stream("def f(x):", params, method="chain"))
    result = events[-1].result
    assert result is not None
    assert all(event.result is None for event in events[:-1])
    assert [token for event in events for token in event.token_ids] == result.token_ids
    assert "".join(event.text for event in events) == result.text
    assert result.token_ids == engine.generate("def f(x):", params, method="ar").token_ids


@pytest.mark.parametrize("method", ["ar", "chain", "tree"])
def test_a_stop_token_ends_it_wherever_it_falls_in_a_round(engine: Engine, method: str) -> None:
    everything = engine.generate(REPETITIVE, SamplingParams(max_tokens=40, ignore_eos=True), method="ar").token_ids
    for place in (0, 1, 7, 20):
        stop = everything[place]
        first = everything.index(stop)
        params = SamplingParams(max_tokens=40, ignore_eos=True, stop_token_ids=(stop,))
        result = engine.generate(REPETITIVE, params, method=method)
        assert result.token_ids == everything[: first + 1]
        assert result.finish_reason == "stop"
        assert result.stats.emitted == first + 1


def test_the_context_is_a_limit_for_every_method_alike(tiny: Path) -> None:
    small = Engine.load(str(tiny), draft="lookup", max_context=64, dtype="float32")
    runs = [small.generate(REPETITIVE, SamplingParams(500, ignore_eos=True), method=m) for m in ("ar", "chain", "tree")]
    assert [run.token_ids for run in runs] == [runs[0].token_ids] * 3
    assert len(runs[0].token_ids) == 64 - len(REPETITIVE)
    assert {run.finish_reason for run in runs} == {"length"}


def test_closing_a_stream_leaves_the_figures_so_far(engine: Engine) -> None:
    stream = engine.stream(REPETITIVE, SamplingParams(max_tokens=100, ignore_eos=True), method="ar")
    for _ in range(5):
        next(stream)
    stream.close()
    assert engine.last_statistics is not None
    assert (engine.last_statistics.emitted, engine.last_statistics.rounds) == (5, 4)


def test_one_stream_at_a_time(engine: Engine) -> None:
    stream = engine.stream(REPETITIVE, SamplingParams(max_tokens=100, ignore_eos=True), method="chain")
    next(stream)
    with pytest.raises(UsageError, match="already generating"):
        engine.generate([1, 2, 3])
    stream.close()
    assert engine.generate([1, 2, 3], SamplingParams(3, ignore_eos=True)).stats.emitted == 3


@pytest.mark.parametrize("method", ["ar", "tree"])
def test_every_token_is_the_draw_of_its_absolute_position(engine: Engine, method: str) -> None:
    """The first by prefill, the others by rounds: token i is drawn with the noise of position len(prompt) + i."""
    params = SamplingParams(max_tokens=40, temperature=0.8, seed=11, ignore_eos=True)
    found = engine.generate(REPETITIVE, params, method=method).token_ids
    prompt = torch.tensor(REPETITIVE)
    logits = torch.from_numpy(engine.logits(REPETITIVE + found[:-1])[len(REPETITIVE) - 1 :])
    sampler = Sampler(params, engine.target.model.spec.vocab, "cpu", prompt)
    positions = torch.arange(40) + len(REPETITIVE)
    assert sampler.draw(logits, positions, prompt.new_empty(40, 0)).tolist() == found


def test_teacher_forced_logits_choose_the_greedy_tokens(engine: Engine) -> None:
    result = engine.generate(REPETITIVE, SamplingParams(max_tokens=20, ignore_eos=True), method="tree")
    logits = engine.logits(REPETITIVE + result.token_ids[:-1])
    assert logits.dtype == np.float32
    assert logits.shape == (len(REPETITIVE) + 19, engine.target.model.spec.vocab)
    assert logits[len(REPETITIVE) - 1 :].argmax(1).tolist() == result.token_ids


def test_a_seed_names_a_text(engine: Engine) -> None:
    texts = {engine.generate([3, 4], SamplingParams(20, temperature=1.5, seed=s)).text for s in range(6)}
    assert len(texts) > 3
    again = engine.generate([3, 4], SamplingParams(20, temperature=1.5, seed=2), method="tree").text
    assert again in texts


def test_describe_names_what_runs(engine: Engine) -> None:
    facts = engine.describe()
    assert facts["target"] == "l-b.Q4_1.gguf"
    assert facts["architecture"] == "llama"
    assert facts["kv"] == "f32" and facts["draft_kv"] == "f32"
    assert facts["draft"] == "lookup"
    assert facts["weight_form"] == "f32 100 %"


def test_describe_names_a_draft_by_its_file(tiny: Path, vendored: Path) -> None:
    engine = Engine.load(str(tiny), dtype="float32")
    assert engine.describe()["draft"] == "none"
    path = vendored / "draft" / "d1-a.Q8_0.dflash.gguf"
    engine.config = replace(engine.config, draft=str(path))
    engine.drafter.name = "dflash"
    assert engine.describe()["draft"] == "dflash:d1-a.Q8_0.dflash.gguf"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kv": "q9"}, "q8_0"),
        ({"draft_kv": "nope"}, "f16"),
        ({"dtype": "int3"}, "float32"),
        ({"weights": "small"}, "compact"),
        ({"token_table": "cloud"}, "host"),
        ({"vram": "lots"}, "24GiB"),
        ({"device": "tpu"}, "cuda"),
        ({"max_context": 0}, "max_context"),
        ({"max_context": "many"}, "max_context"),
        ({"threads": 0}, "threads"),
        ({"speed": 9}, "speed"),
        ({"draft_causal": "maybe"}, "sliding"),
        ({"draft": "lookup", "draft_block": 8}, "draft_block"),
        ({"draft": "lookup", "draft_window": 8}, "draft_window"),
        ({"draft_window": -1}, "window"),
        ({"draft_window": "all"}, "window"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(tiny: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        Engine.load(str(tiny), **options)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ([], {}, "empty"),
        ([1, 2, 10**6], {}, "token id"),
        ([-1], {}, "token id"),
        ([1] * 256, {}, "max_context"),
        ([1] * 9999, {}, "max_context"),
        ([1], {"budget": 0}, "63"),
        ([1], {"budget": 1000}, "63"),
        ([1], {"budget": 64, "method": "tree"}, "63"),
        ([1], {"method": "magic"}, "chain"),
        ([1], {"method": "tree", "chain_seed": "most"}, "half"),
    ],
)
def test_wrong_requests_are_refused_in_one_sentence(
    engine: Engine, prompt: list[int], options: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        engine.generate(prompt, **options)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300


def test_drafting_needs_a_draft(tiny: Path) -> None:
    plain = Engine.load(str(tiny), dtype="float32")
    assert plain.generate([1, 2, 3], SamplingParams(4)).stats.method == "ar"
    with pytest.raises(UsageError, match="lookup"):
        plain.generate([1, 2, 3], method="chain")


def test_files_that_are_not_targets(tiny: Path, tmp_path: Path, vendored: Path) -> None:
    with pytest.raises(FileError):
        Engine.load(str(tmp_path / "nothing.gguf"))
    (tmp_path / "text.gguf").write_text("hello, I am not a model")
    with pytest.raises(FormatError):
        Engine.load(str(tmp_path / "text.gguf"))
    with pytest.raises(UnsupportedModelError, match="draft"):
        Engine.load(str(vendored / "draft" / "d1-a.Q8_0.dflash.gguf"))
    with pytest.raises(FileError):
        Engine.load(str(tiny), draft=str(tmp_path / "no-draft.gguf"))
    with pytest.raises(UnsupportedModelError, match="draft"):
        Engine.load(str(tiny), draft=str(tiny))


def test_a_draft_of_another_target_is_refused(tiny: Path, vendored: Path) -> None:
    with pytest.raises(DraftwoodError) as caught:
        Engine.load(str(tiny), draft=str(vendored / "draft" / "d1-a.Q8_0.dflash.gguf"))
    assert "192" in str(caught.value)
    assert "128" in str(caught.value)


def test_truncated_files_never_crash(tiny: Path, tmp_path: Path) -> None:
    whole, path, draw = tiny.read_bytes(), tmp_path / "cut.gguf", random.Random(5)
    for _ in range(20):
        path.write_bytes(whole[: draw.randrange(len(whole))])
        with pytest.raises(FileError) as caught:
            Engine.load(str(path), dtype="float32")
        assert len(str(caught.value)) < 300


def values_in(header: Path) -> list[tuple[int, int]]:
    """Offset and size of every number in metadata, and of shapes, types and offsets in the tensor table."""
    reader = gguf.GGUFReader(header)
    places = []
    for field in (*reader.fields.values(), *(tensor.field for tensor in reader.tensors)):
        at = field.offset
        for index, part in enumerate(field.parts):
            # Of a list the type, the length and the first values; of a tensor all that follows its name.
            if (index in field.data[:6] or 1 < index < 5) if field.types else index > 1:
                places.append((at, part.itemsize))
            at += part.nbytes
    return places


def damaged(old: bytes, draw: random.Random) -> bytes:
    """Other bytes in the place of a little-endian number: near ones, round ones, huge ones and random ones."""
    number = int.from_bytes(old, "little")
    huge = draw.choice((0, 1, 3, 64, 4096, 1 << 20, 1 << 31, (1 << 64) - 1, draw.getrandbits(64)))
    return (draw.choice((number - 1, number + 1, number * 2, huge)) % (1 << 8 * len(old))).to_bytes(len(old), "little")


@pytest.fixture
def little_memory_and_time() -> Iterator[None]:
    """No more than 2 GiB above what the process has mapped (where that is known), and no more than a minute."""
    resource = pytest.importorskip("resource")
    pages = Path("/proc/self/statm")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if pages.exists():
        mapped = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (2 << 30), limits[1]))

    def give_up(*_: object) -> None:
        raise TimeoutError("a damaged file took a minute")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("little_memory_and_time")
@pytest.mark.parametrize(
    "name", ["models/l-b.Q4_1", "models/q3-b.Q4_K_M", "models/q35-c.Q4_K_M", "draft/d1-a.Q8_0.dflash"]
)
def test_damaged_headers_never_crash(name: str, vendored: Path, tiny: Path, tmp_path: Path) -> None:
    """100 damaged headers of each file: a result or one sentence, no crash, hang or giant allocation."""
    source, path, draw = vendored / f"{name}.gguf", tmp_path / "damaged.gguf", random.Random(11)
    shutil.copy(source, path)
    places = values_in(source)
    header = source.read_bytes()[: gguf.GGUFReader(source).data_offset]
    outcomes = set()
    for case in range(100):
        changed = bytearray(header)
        for _ in range(draw.choice((1, 1, 2, 8))):
            at, size = draw.choice(places) if case % 4 else (draw.randrange(len(header) - 8), draw.choice((1, 4, 8)))
            changed[at : at + size] = damaged(header[at : at + size], draw)
        with path.open("r+b") as file:
            file.write(changed)
        try:
            if name.startswith("draft"):
                Engine.load(str(tiny), draft=str(path), dtype="float32")
            else:
                Engine.load(str(path), dtype="float32", max_context=64).generate([1, 2, 3], SamplingParams(2))
            outcomes.add("answered")
        except DraftwoodError as error:
            outcomes.add(type(error).__name__)
            assert len(str(error)) < 300
            assert "\n" not in str(error)
    assert len(outcomes) > 1
