"""The mix of scripts: every part, its markers, and what decides what is drawn."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from draftwood.errors import UsageError
from draftwood.text.tokenizer import Tokenizer
from draftwood.training.prompts import PARTS, build_scripts
from draftwood.training.prompts.chat_format import ChatFormat
from draftwood.training.prompts.desk import Desk
from draftwood.training.prompts.raw_code import _without_types
from draftwood.training.prompts.scripts import ANSWER, USER, Script
from draftwood.training.prompts.word_lists import fill, read_lists

pytestmark = pytest.mark.usefixtures("small_stock")

FILES = (
    "systems.txt",
    "openers.txt",
    "followups.txt",
    "topics.txt",
    "requests.txt",
    "prose.txt",
    "stubs.txt",
    "things.txt",
)


def drawn(tokenizer: Tokenizer, count: int, seed: int = 1, **options: object) -> list[Script]:
    assert tokenizer.chat_template is not None
    return build_scripts(tokenizer, tokenizer.chat_template, seed, count, 640, 2000, **options)  # type: ignore[arg-type]


def test_the_seed_decides(tokenizer: Tokenizer) -> None:
    first, again, other = (drawn(tokenizer, 120, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(first) == 120


def test_shares_are_of_answer_tokens(tokenizer: Tokenizer) -> None:
    scripts = drawn(tokenizer, 400, shares={"chat": 3.0, "structured": 1.0})
    number = Counter(script.part for script in scripts)
    tokens = {name: number[name] * PARTS[name].answer for name in number}
    assert set(number) == {"chat", "structured"}
    assert tokens["chat"] == pytest.approx(3 * tokens["structured"], rel=0.02)
    assert sum(part.share for part in PARTS.values()) == pytest.approx(1)


@pytest.mark.parametrize("share", [0.0, 0.65, 1.0])
def test_greedy_share(tokenizer: Tokenizer, share: float) -> None:
    greedy = [script.greedy for script in drawn(tokenizer, 400, greedy_share=share, shares={"chat": 1.0})]
    assert sum(greedy) / len(greedy) == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_draws_scripts_that_can_be_played(tokenizer: Tokenizer, part: str) -> None:
    scripts = drawn(tokenizer, 60, shares={part: 1.0})
    for script in scripts:
        assert script.part == part and script.source
        assert 0 < script.cap <= 640 and len(script.tokens) <= 2000
        assert script.tokens[-1] == ANSWER and script.tokens[0] >= 0
        assert all(USER <= max(token, USER) < tokenizer.vocab_size for token in script.tokens if token != ANSWER)
        # A marker never follows a marker: between two stretches a tag is fed.
        assert all(a >= 0 or b >= 0 for a, b in zip(script.tokens, script.tokens[1:], strict=False))
    assert len({script.source for script in scripts}) > 6
    fixed = [script.tokens for script in scripts if USER not in script.tokens]
    assert len(set(fixed)) == len(fixed)


def test_the_end_of_a_written_turn_is_not_fed(tokenizer: Tokenizer) -> None:
    for script in drawn(tokenizer, 60, shares={"chat_turns": 1.0}):
        markers = [index for index, token in enumerate(script.tokens) if token < 0]
        assert [script.tokens[index] for index in markers] in ([USER, ANSWER] * 2, [USER, ANSWER] * 3)
        for index in markers[:-1]:
            following = script.tokens[index + 1 : index + 4]
            assert tokenizer.decode(following).startswith("\n<|im_start|>")
            assert not tokenizer.stop_ids & set(following)


def test_raw_code_has_no_chat_around_it(tokenizer: Tokenizer) -> None:
    for script in drawn(tokenizer, 60, shares={"raw_code": 1.0}):
        assert not any(tokenizer.is_control(token) for token in script.tokens[:-1])


def test_one_chat_in_ten_has_another_system_message(tokenizer: Tokenizer) -> None:
    assert tokenizer.chat_template is not None
    head = ChatFormat(tokenizer, tokenizer.chat_template).head(None)
    scripts = drawn(tokenizer, 600, shares={"chat": 1.0})
    usual = sum(script.tokens[: len(head)] == head for script in scripts)
    assert 0.84 < usual / len(scripts) < 0.95


def test_what_cannot_be_drawn(tokenizer: Tokenizer) -> None:
    for shares in ({"poems": 1.0}, {"chat": 0.0}, {}):
        with pytest.raises(UsageError, match="the parts of the training text are chat,"):
            drawn(tokenizer, 5, shares=shares)
    assert tokenizer.chat_template is not None
    with pytest.raises(UsageError, match="of 10 tokens at most"):
        build_scripts(tokenizer, tokenizer.chat_template, 1, 5, 640, 10)


@pytest.mark.parametrize("file", FILES)
def test_word_lists_are_whole(file: str) -> None:
    lists = read_lists(file)
    words = {**read_lists("topics.txt"), **read_lists("prose.txt"), **read_lists("things.txt"), **lists}
    words |= {name: ("3",) for name in ("few", "some", "many")}
    for name, entries in lists.items():
        assert entries and len(set(entries)) == len(entries), name
        for entry in entries:
            if file != "stubs.txt":
                assert "{" not in fill(entry, words, Random(0))[0], entry


def test_there_is_enough_variety() -> None:
    assert len(read_lists("openers.txt")["line"]) > 300
    assert len(read_lists("systems.txt")["line"]) > 80
    assert sum(map(len, read_lists("topics.txt").values())) > 800


def test_the_first_slot_is_the_key() -> None:
    words = {"a": ("x", "y"), "b": ("z",)}
    text, key = fill("{b} and {a} or {a}", words, Random(0))
    assert key == "b: z"
    assert sorted(text) == sorted("z and x or y")
    assert fill("no slot", words, Random(0)) == ("no slot", "no slot")


def test_heads_without_types() -> None:
    assert _without_types('f(a: int, b: list[dict], c: str = "x") -> dict[str, int]') == 'f(a, b, c="x")'
    assert _without_types("g(x, y=2) -> None") == "g(x, y=2)"
    for stub in read_lists("stubs.txt")["stub"]:
        head = stub.split("|")[0].strip()
        for shown in (head, _without_types(head)):
            compile(f"def {shown}:\n    pass\n", "stub", "exec")
        assert ":" not in _without_types(head)


def test_the_stock_is_read_once(tokenizer: Tokenizer) -> None:
    assert tokenizer.chat_template is not None
    desk = Desk(ChatFormat(tokenizer, tokenizer.chat_template), 1)
    assert desk.stock is desk.stock
