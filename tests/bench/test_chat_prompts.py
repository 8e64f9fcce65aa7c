"""The thirty chat prompts are the pinned ones, and no training prompt touches them or another benchmark."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from draftwood.bench.prompts import editing, prompts_for
from draftwood.bench.prompts.chat import DIGEST, PROMPTS
from draftwood.bench.prompts.humaneval import all_texts, prompts_sha256
from draftwood.engine.fetch import cached
from draftwood.errors import UsageError
from draftwood.formats.gguf import GGUFFile
from draftwood.text.tokenizer import Tokenizer
from draftwood.training.overlap import RunIndex
from draftwood.training.prompts import build_scripts
from draftwood.training.prompts.python_source import gather
from draftwood.training.prompts.scripts import Script


def test_thirty_pinned_prompts() -> None:
    assert len(PROMPTS) == len({prompt.name for prompt in PROMPTS}) == len({prompt.text for prompt in PROMPTS}) == 30
    assert prompts_sha256(PROMPTS) == DIGEST


@pytest.fixture
def tokenizer(demo_model: Path) -> Tokenizer:
    return Tokenizer.from_metadata(GGUFFile.open(demo_model).metadata)


def benchmark_texts() -> list[str]:
    texts = [prompt.text for prompt in PROMPTS] + [editing.REQUEST]
    humaneval = cached("humaneval")
    return texts + (all_texts(humaneval) if humaneval else [])


def assert_clear(tokenizer: Tokenizer, count: int) -> None:
    """Scripts drawn with the benchmarks at hand share no 13 tokens with them.

    Without them only pieces of real source may, by chance: lines that are written everywhere.
    """
    ids = [tokenizer.encode(text, special=False) for text in benchmark_texts()]
    index = RunIndex(ids)
    assert index.shares_run([5, *ids[0][2:15], 5])

    def shared(benchmark: RunIndex | None) -> list[Script]:
        template = tokenizer.chat_template
        assert template is not None
        scripts = build_scripts(tokenizer, template, 1, count, 640, 512, benchmark=benchmark)
        assert len(scripts) == count
        return [script for script in scripts if index.shares_run(script.tokens)]

    assert not shared(index)
    by_chance = shared(None)
    assert len(by_chance) <= count // 200
    assert {script.part for script in by_chance} <= {"code_chat", "raw_code"}


def test_training_prompts_are_clear_of_benchmarks(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    some = [(f"python/{path.name}", path) for path in sorted(library.glob("[a-h]*.py"))]
    monkeypatch.setattr("draftwood.training.prompts.desk.gather", lambda seed: gather(seed, some))
    assert_clear(tokenizer, 2000)


@pytest.mark.slow
def test_so_are_those_of_all_source_on_this_machine(tokenizer: Tokenizer) -> None:
    assert_clear(tokenizer, 3000)


def test_in_the_target_s_template(vendored: Path) -> None:
    tokenizer = Tokenizer.from_metadata(GGUFFile.open(vendored / "models" / "l-b.Q4_1.gguf").metadata)
    texts = prompts_for("chat", tokenizer)
    assert [prompt.name for prompt in texts] == [prompt.name for prompt in PROMPTS]
    for prompt, plain in zip(texts, PROMPTS, strict=True):
        assert f"<|im_start|>user\n{plain.text}<|im_end|>" in prompt.text
        assert prompt.text.endswith("<|im_start|>assistant\n")
    with pytest.raises(UsageError, match="chat template"):
        prompts_for("chat", None)
