"""Pieces of text join to the whole, whatever the ids and wherever they are divided."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from draftwood.errors import UsageError
from draftwood.formats.gguf import GGUFFile
from draftwood.text.stream import TextStream
from draftwood.text.tokenizer import Tokenizer

TEXT = "naïve e\u0301 😀👩\u200d👩\u200d👧 漢字かな한국어 नमस्ते \u202eABC 🇫🇷\n\tx = 'ß' \U00041234"
CASES = 60


def random_ids(tokenizer: Tokenizer, pieces: list[int], random_: random.Random) -> list[int]:
    """Ids of four kinds in random order: any, such with an incomplete character, control, ids of TEXT."""
    ids: list[int] = []
    text_ids = tokenizer.encode(TEXT, special=False)
    for _ in range(random_.randrange(1, 12)):
        match random_.randrange(4):
            case 0:
                ids += random_.choices(range(tokenizer.vocab_size), k=random_.randrange(1, 4))
            case 1:
                ids += random_.choices(pieces, k=random_.randrange(1, 6))
            case 2:
                ids += random_.choices(sorted(tokenizer.stop_ids))
            case _:
                start = random_.randrange(len(text_ids))
                ids += text_ids[start : start + random_.randrange(1, 9)]
    return ids


def parts_of_characters(tokenizer: Tokenizer) -> list[int]:
    """Tokens whose bytes are no text of their own."""
    return [id for id in range(tokenizer.vocab_size) if "\ufffd" in tokenizer.decode([id])]


def assert_pieces_join(tokenizer: Tokenizer, seed: int) -> None:
    random_ = random.Random(seed)
    pieces = parts_of_characters(tokenizer)
    assert len(pieces) > 50
    for case in range(CASES):
        ids = random_ids(tokenizer, pieces, random_)
        skip_special = case % 2 == 0
        stream = TextStream(tokenizer, skip_special=skip_special)
        joined, start = "", 0
        while start < len(ids):
            end = start + random_.randrange(0, 4)
            joined += stream.push(ids[start:end])
            start = end
        joined += stream.flush()
        assert joined == tokenizer.decode(ids, skip_special=skip_special), ids


@pytest.mark.parametrize("name", ["q35-c.Q4_K_M.gguf", "l-b.Q4_1.gguf"])
def test_pieces_join_to_the_whole(vendored: Path, name: str) -> None:
    assert_pieces_join(Tokenizer.from_metadata(GGUFFile.open(vendored / "models" / name).metadata), seed=1)


@pytest.mark.parametrize(
    "name", ["tokenizer/vocab-qwen2.gguf", "tokenizer/vocab-qwen35.gguf", "smollm2/vocab-smollm2.gguf"]
)
def test_pieces_join_to_the_whole_real_vocabularies(oracle_tokenizer: Callable[[str], Tokenizer], name: str) -> None:
    assert_pieces_join(oracle_tokenizer(name), seed=2)


@pytest.fixture
def tokenizer(vendored: Path) -> Tokenizer:
    """A vocabulary of 512 in which nearly every character outside ASCII is several tokens."""
    return Tokenizer.from_metadata(GGUFFile.open(vendored / "models" / "q35-c.Q4_K_M.gguf").metadata)


def test_characters_arrive_whole_and_as_soon_as_complete(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    ids = tokenizer.encode("😀é", special=False)
    assert len(ids) == 6
    assert [stream.push([id]) for id in ids] == ["", "", "", "😀", "", "é"]
    assert stream.flush() == ""


def test_no_replacement_character_in_sound_text(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    pushed = [stream.push([id]) for id in tokenizer.encode(TEXT, special=False)]
    assert "".join(pushed) == TEXT
    assert "\ufffd" not in "".join(pushed)


def test_flush_shows_an_unfinished_character_once(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    assert stream.push(tokenizer.encode("a😀", special=False)[:-1]) == "a"
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_special_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>a<|im_end|>", special=True)
    assert TextStream(tokenizer).push(ids) == "a"
    assert TextStream(tokenizer, skip_special=False).push(ids) == "<|im_start|>a<|im_end|>"


def test_ids_out_of_range_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="token id 512"):
        TextStream(tokenizer).push([512])
