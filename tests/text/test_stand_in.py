"""The tokenizer of models that have none."""

from __future__ import annotations

import pytest

from draftwood.text.stand_in import END, stand_in_tokenizer
from draftwood.text.tokenizer import Tokenizer

VOCAB = 1024


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_metadata(stand_in_tokenizer(VOCAB))


@pytest.mark.parametrize("text", ["hi", "Grüße, 世界! 🌲\n\t", "[300]", "def f(x):\n    return x"])
def test_texts_survive(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, special=True, add_bos=True)
    assert tokenizer.decode(ids) == text
    assert max(ids) <= 256


def test_a_byte_is_its_own_number(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("hi", special=True) == [104, 105]
    assert tokenizer.decode_bytes(range(256)) == bytes(range(256))


def test_other_tokens_say_their_number(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([257, 1000, 104, VOCAB - 2]) == f"[257][1000]h[{VOCAB - 2}]"
    assert tokenizer.vocab_size == VOCAB


def test_the_last_token_ends_a_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.stop_ids == {VOCAB - 1}
    assert tokenizer.is_control(VOCAB - 1) and tokenizer.encode(END, special=True) == [VOCAB - 1]
    assert tokenizer.chat_template is None
