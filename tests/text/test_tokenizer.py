"""Token ids against llama.cpp's for five vocabularies, and the rules one by one on a small one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from draftwood.errors import FormatError, UnsupportedModelError, UsageError
from draftwood.formats.gguf import GGUFFile
from draftwood.text.tokenizer import PRE_TOKENIZERS, Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5

# The vectors name the file a vocabulary was taken from; these hold the same one.
VENDORED_FILES = {"q35-a-f32.gguf": "q35-c.Q4_K_M.gguf", "q3-a-f32.gguf": "q3-b.Q4_K_M.gguf"}
ORACLE_FILES = {
    "vocab-qwen2.gguf": "tokenizer/vocab-qwen2.gguf",
    "vocab-qwen35.gguf": "tokenizer/vocab-qwen35.gguf",
    "q35-a-f32.gguf": "models/q35-a.F32.gguf",
    "q3-a-f32.gguf": "models/q3-a.F32.gguf",
}


def assert_reproduces(tokenizer: Tokenizer, vectors: list[dict[str, Any]]) -> None:
    """Every vector: ids with special parsing off and on, and whether the text comes back."""
    assert len(vectors) >= 40
    for vector in vectors:
        text = vector["text"]
        assert tokenizer.encode(text, special=False) == vector["ids"], text
        assert tokenizer.encode(text, special=True) == vector["ids_special"], text
        assert (tokenizer.decode(vector["ids"]) == text) is vector["roundtrip"], text


# -- llama.cpp's ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", VENDORED_FILES)
def test_ids_of_the_vendored_vectors(vendored: Path, vocabulary: str) -> None:
    vectors = json.loads((vendored / "tokenizer" / "vectors-512.json").read_text(encoding="utf-8"))["vocabs"]
    file = GGUFFile.open(vendored / "models" / VENDORED_FILES[vocabulary])
    assert_reproduces(Tokenizer.from_metadata(file.metadata), vectors[vocabulary])


@pytest.mark.parametrize("vocabulary", ORACLE_FILES)
def test_ids_of_the_oracle_vectors(oracle: Path, oracle_tokenizer: Callable[[str], Tokenizer], vocabulary: str) -> None:
    vectors = json.loads((oracle / "tokenizer" / "vectors.json").read_text(encoding="utf-8"))["vocabs"]
    assert_reproduces(oracle_tokenizer(ORACLE_FILES[vocabulary]), vectors[vocabulary])


def test_ids_of_the_smollm2_vectors(oracle: Path, oracle_tokenizer: Callable[[str], Tokenizer]) -> None:
    expected = json.loads((oracle / "smollm2" / "smollm2.json").read_text(encoding="utf-8"))
    tokenizer = oracle_tokenizer("smollm2/vocab-smollm2.gguf")
    assert_reproduces(tokenizer, expected["tokenizer"])
    for prompt in expected["prompts"]:
        assert tokenizer.encode(prompt["text"], special=True) == prompt["ids"]


def test_facts_of_the_oracle_vocabularies(oracle_tokenizer: Callable[[str], Tokenizer]) -> None:
    qwen35 = oracle_tokenizer("tokenizer/vocab-qwen35.gguf")
    assert (qwen35.vocab_size, qwen35.bos_id, qwen35.eos_id) == (248320, None, 248046)
    assert {248044, 248046} <= qwen35.stop_ids
    assert qwen35.encode("<think>\n\n</think>", special=False) == [248068, 271, 248069]
    assert not qwen35.is_control(248068)
    assert qwen35.is_control(248045)
    assert qwen35.token_bytes(248319) == b""  # a padding row
    assert {151643, 151645} <= oracle_tokenizer("tokenizer/vocab-qwen2.gguf").stop_ids

    smollm2 = oracle_tokenizer("smollm2/vocab-smollm2.gguf")
    assert (smollm2.vocab_size, smollm2.bos_id, smollm2.eos_id) == (49152, 1, 2)
    assert smollm2.stop_ids == {0, 2}
    assert not smollm2.adds_bos


def test_bytes_without_a_token_are_dropped(oracle_tokenizer: Callable[[str], Tokenizer]) -> None:
    smollm2 = oracle_tokenizer("smollm2/vocab-smollm2.gguf")
    assert smollm2.encode("\x04\x06", special=False) == []
    # Plane 4 starts with byte 0xF1, one of the 21.
    assert smollm2.decode_bytes(smollm2.encode("\U00041234", special=False)) == "\U00041234".encode()[1:]


def test_text_is_not_normalised(oracle_tokenizer: Callable[[str], Tokenizer]) -> None:
    qwen35 = oracle_tokenizer("tokenizer/vocab-qwen35.gguf")
    for text in ("e\u0301", "\u00e9", "\u1100\u1161", "\ufb01 \uff46\uff55", "\u212b"):
        assert qwen35.decode(qwen35.encode(text, special=False)) == text


# -- the rules, on a vocabulary made by hand ---------------------------------------------------------------

TOKENS = ["a", "b", "c", "Ġ", "ab", "bc", "Ċ", "ðŁ", "ĺĢ", "<s>", "<s>x", "<end>", "<think>", "[PAD13]", "é"]
TYPES = [NORMAL] * 9 + [CONTROL, CONTROL, CONTROL, USER_DEFINED, UNUSED, USER_DEFINED]


def metadata(**changes: Any) -> dict[str, Any]:
    """Metadata of the hand-made vocabulary; keyword `x` replaces `tokenizer.ggml.x`, None removes it."""
    values = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": TOKENS,
        "token_type": TYPES,
        "merges": ["a b", "b c"],
        "bos_token_id": 9,
        "eos_token_id": 11,
    }
    merged = {f"tokenizer.ggml.{key}": value for key, value in {**values, **changes}.items()}
    return {key: value for key, value in merged.items() if value is not None}


def hand_made(**changes: Any) -> Tokenizer:
    return Tokenizer.from_metadata(metadata(**changes))


def test_merges_by_rank() -> None:
    assert hand_made().encode("abc", special=False) == [4, 2]
    assert hand_made(merges=["b c", "a b"]).encode("abc", special=False) == [0, 5]
    # Of a repeated merge the first rank counts.
    assert hand_made(merges=["b c", "a b", "b c"]).encode("abc", special=False) == [0, 5]


def test_a_whole_word_is_still_built_by_merges_unless_the_pre_tokeniser_says_otherwise() -> None:
    assert hand_made(merges=["b c"]).encode("ab", special=False) == [0, 1]
    assert hand_made(merges=["b c"], pre="llama-bpe").encode("ab", special=False) == [4]


def test_a_merge_without_a_token_ends_as_its_bytes() -> None:
    assert hand_made(merges=["b a", "a b"]).encode("ba", special=False) == [1, 0]


def test_a_byte_without_a_token_keeps_its_neighbours_apart() -> None:
    tokenizer = hand_made()
    assert tokenizer.encode("ab", special=False) == [4]
    assert tokenizer.encode("a\u00f1b", special=False) == [0, 1]


def test_control_tokens_match_only_on_request_and_user_defined_ones_always() -> None:
    tokenizer = hand_made()
    assert tokenizer.encode("a<think>b", special=False) == [0, 12, 1]
    assert tokenizer.encode("a<think>b<end>", special=True) == [0, 12, 1, 11]
    assert 11 not in tokenizer.encode("<end>", special=False)


def test_longer_tokens_are_cut_out_first_and_spaces_stay() -> None:
    tokenizer = hand_made()
    assert tokenizer.encode("<s><s>x<s>", special=True) == [9, 10, 9]
    assert tokenizer.encode(" <s> \n", special=True) == [3, 9, 3, 6]


def test_the_look_ahead_ends_with_the_piece() -> None:
    """In front of a token that is cut out, white space is at the end of its piece."""
    tokenizer = hand_made(tokens=[*TOKENS, "ĠĠ"], token_type=[*TYPES, NORMAL], merges=["Ġ Ġ"])
    assert tokenizer.encode("  <think>", special=False) == [15, 12]
    assert tokenizer.encode("  a", special=False) == [3, 3, 0]


def test_bos_is_added_only_if_the_caller_and_the_file_want_it() -> None:
    assert hand_made(add_bos_token=True).encode("a", special=False) == [0]
    assert hand_made(add_bos_token=True).encode("a", special=False, add_bos=True) == [9, 0]
    assert hand_made(add_bos_token=False).encode("a", special=False, add_bos=True) == [0]
    assert hand_made(add_bos_token=True, bos_token_id=None).encode("a", special=False, add_bos=True) == [0]
    assert hand_made(add_bos_token=True).adds_bos
    assert hand_made(pre="llama-bpe").adds_bos
    assert not hand_made().adds_bos


def test_stop_ids() -> None:
    assert hand_made().stop_ids == {11}
    assert hand_made(eot_token_id=9, eom_token_id=10).stop_ids == {9, 10, 11}
    # A known name counts if it is a control token, not as ordinary text.
    renamed = ["<|im_end|>" if token == "<s>" else token for token in TOKENS]
    assert hand_made(tokens=renamed).stop_ids == {9, 11}
    assert hand_made(tokens=renamed, token_type=[NORMAL] * 15).stop_ids == {11}


def test_decoding() -> None:
    tokenizer = hand_made()
    assert tokenizer.decode([7, 8]) == "😀"
    assert tokenizer.decode([7]) == "\ufffd"
    assert tokenizer.token_bytes(7) == b"\xf0\x9f"
    assert tokenizer.decode([9, 0, 3, 12, 13, 11]) == "<s>a <think><end>"
    assert tokenizer.decode([9, 0, 3, 12, 13, 11], skip_special=True) == "a <think>"
    assert tokenizer.token_bytes(14) == "é".encode()  # user-defined: text, not the alphabet's byte 0xE9
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("id", [-1, 15])
def test_ids_out_of_range_are_refused(id: int) -> None:
    with pytest.raises(UsageError, match=f"token id {id} .* 0 to 14"):
        hand_made().decode([0, id])


def test_surrogates_do_not_crash() -> None:
    tokenizer = hand_made(merges=["ð Ł", "ĺ Ģ"])
    assert tokenizer.encode("\ud83d\ude00", special=False) == [7, 8]
    assert tokenizer.encode("a\ud83db", special=False) == [0, 1]  # U+FFFD has no token here


def test_without_types_every_token_is_ordinary() -> None:
    tokenizer = hand_made(token_type=None)
    assert not any(tokenizer.is_control(id) for id in range(tokenizer.vocab_size))
    assert tokenizer.encode("a<think>b", special=True) == [0, 1]


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("qwen2", ["I", "'M", " ae", "\u0301", " ", "1", "2", "3", "4", ".\n"]),
        ("qwen35", ["I", "'M", " ae\u0301", " ", "1", "2", "3", "4", ".\n"]),
        ("smollm", ["I", "'", "M", " ae", "\u0301", " ", "1", "2", "3", "4", ".", "\n"]),
        ("gpt-2", ["I", "'", "M", " ae", "\u0301", " 1234", ".", "\n"]),
        ("llama-bpe", ["I", "'M", " ae", "\u0301", " ", "123", "4", ".\n"]),
    ],
)
def test_splits_of_the_pre_tokenisers(pre: str, words: list[str]) -> None:
    """Words of a text for each table entry: whatever is adjacent merges, so a token is a word."""
    text = "I'M ae\u0301 1234.\n"
    characters = alphabet_text(text)
    merges = [
        f"{characters[i:j]} {characters[j]}" for i in range(len(characters)) for j in range(i + 1, len(characters))
    ]
    tokens = sorted({*characters, *(merge.replace(" ", "") for merge in merges)})
    tokenizer = hand_made(pre=pre, tokens=tokens, token_type=None, merges=merges, bos_token_id=None, eos_token_id=None)
    assert [tokenizer.decode([id]) for id in tokenizer.encode(text, special=False)] == words


def alphabet_text(text: str) -> str:
    """`text` in GPT-2's byte alphabet, for the few bytes that occur here."""
    substitutes = {0x20: "Ġ", 0x0A: "Ċ", 0x81: "ģ"}
    return "".join(substitutes.get(byte, chr(byte)) for byte in text.encode())


def test_aliases_share_their_splits() -> None:
    for alias in ("refact", "starcoder", "command-r", "codeshell", "exaone", "minerva-7b"):
        assert PRE_TOKENIZERS[alias] is PRE_TOKENIZERS["smollm"]


# -- files that cannot be used -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"tokens": None}, FormatError, "no vocabulary"),
        ({"tokens": []}, FormatError, "no vocabulary"),
        ({"tokens": [1, 2]}, FormatError, "tokens is not a list of strings"),
        ({"merges": None}, FormatError, "merges is missing"),
        ({"merges": "a b"}, FormatError, "merges is not a list of strings"),
        ({"merges": ["ab"]}, FormatError, "'ab'"),
        ({"merges": ["x" * 5000]}, FormatError, "xxx"),
        ({"token_type": [1]}, FormatError, "list of 15 numbers"),
        ({"token_type": ["1"] * 15}, FormatError, "list of 15 numbers"),
        ({"eos_token_id": 15}, FormatError, "eos_token_id is 15.* 0 to 14"),
        ({"bos_token_id": "<s>"}, FormatError, "bos_token_id is '<s>'"),
        ({"model": None}, UnsupportedModelError, "missing.*gpt2"),
        ({"model": "llama"}, UnsupportedModelError, "'llama'.*gpt2"),
        ({"pre": None}, UnsupportedModelError, "missing.*qwen35"),
        ({"pre": "p" * 5000}, UnsupportedModelError, "'ppp.*qwen2, .*qwen35, .*smollm"),
        ({"pre": ["qwen2"]}, UnsupportedModelError, "known ones"),
    ],
)
def test_unusable_metadata_gets_one_sentence(changes: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as raised:
        hand_made(**changes)
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


def test_chat_template_of_the_file() -> None:
    assert hand_made().chat_template is None
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    template = Tokenizer.from_metadata(metadata() | {"tokenizer.chat_template": source}).chat_template
    assert template is not None
    assert template.render([{"role": "user", "content": "a"}]) == "<s>a<end>"


def test_a_broken_chat_template_spoils_only_chat() -> None:
    tokenizer = Tokenizer.from_metadata(metadata() | {"tokenizer.chat_template": "{% if %}"})
    assert tokenizer.encode("a", special=False) == [0]
    with pytest.raises(FormatError, match="chat template"):
        _ = tokenizer.chat_template
    with pytest.raises(FormatError, match="chat_template is 3"):
        Tokenizer.from_metadata(metadata() | {"tokenizer.chat_template": 3})
