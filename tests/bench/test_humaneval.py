"""The ten prompts are the pinned ones, byte for byte."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from draftwood.bench.prompts.editing import REQUEST, editing_prompt
from draftwood.bench.prompts.humaneval import Prompt, load_prompts, prompts_sha256
from draftwood.engine.fetch import cached
from draftwood.errors import FormatError
from draftwood.text.chat_template import ChatTemplate

# SPEC-dflash 7.1: characters and the first 16 hex digits of the SHA-256.
PINNED = {
    "has_close_elements": (353, "eb8ed1bcb5e9bee3"),
    "separate_paren_groups": (574, "22d37f12dea840dc"),
    "truncate_number": (339, "4d6228ef4422d001"),
    "below_zero": (476, "0dd6eb42233302e5"),
    "mean_absolute_deviation": (439, "9545160985c29e1e"),
    "intersperse": (317, "9cd0d5c9209ebdae"),
    "parse_nested_parens": (520, "de6daaf9efa2d062"),
    "filter_by_substring": (339, "2fd38d40d559643f"),
    "sum_product": (403, "221fe1e9b5b64f79"),
    "rolling_max": (366, "641a22ee5177fd0a"),
}


@pytest.fixture
def humaneval_file() -> Path:
    path = cached("humaneval")
    if path is None:
        pytest.skip("the HumanEval prompts are not in the cache; `draftwood pull humaneval` fetches them")
    return path


def test_ten_prompts(humaneval_file: Path) -> None:
    prompts = load_prompts(humaneval_file)
    found = {
        prompt.name: (len(prompt.text), hashlib.sha256(prompt.text.encode()).hexdigest()[:16]) for prompt in prompts
    }
    assert found == PINNED
    assert list(found) == list(PINNED)
    assert prompts_sha256(prompts) == hashlib.sha256("".join(p.text for p in prompts).encode()).hexdigest()


def test_a_changed_task_is_refused(humaneval_file: Path, tmp_path: Path) -> None:
    with gzip.open(humaneval_file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows[4]["prompt"] += " "
    changed = tmp_path / "HumanEval.jsonl.gz"
    with gzip.open(changed, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(FormatError, match="draftwood pull humaneval"):
        load_prompts(changed)


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"not json\n"), gzip.compress(b"{}\n" * 10)],
    ids=["empty", "not gzip", "not json", "other rows"],  # gzip notes the time, and all workers must find one name.
)
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.gz"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"other\.gz is not the HumanEval file"):
        load_prompts(path)


def test_the_hash_tells_texts_apart() -> None:
    one, other = [Prompt("a", "x"), Prompt("b", "y")], [Prompt("a", "y"), Prompt("b", "x")]
    assert prompts_sha256(one) != prompts_sha256(other)


def test_editing_prompt_with_and_without_a_template() -> None:
    template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>")
    assert editing_prompt(template).text.startswith("<user>Rewrite")
    for prompt in (editing_prompt(template), editing_prompt(None)):
        assert REQUEST in prompt.text
        assert prompt.text.endswith('def read_settings(path, separator=":"):')
