"""A tokenizer for models that have none: one token a byte, and a name for every other token."""

from __future__ import annotations

from typing import Any

from draftwood.text.tokenizer import BYTE_ALPHABET, CONTROL, NORMAL

END = "<|end|>"


def stand_in_tokenizer(vocab: int, pre: str = "qwen35") -> dict[str, Any]:
    """The `tokenizer.ggml` metadata of a byte-level BPE tokenizer of `vocab` tokens, at least 258.

    Token 0 to 255 are the bytes, 256 two spaces (files with no merge at all are refused by other engines), the last one
    ends a text, and token i between them is written "[i]".
    """
    space = BYTE_ALPHABET[ord(" ")]
    numbered = [f"[{i}]" for i in range(len(BYTE_ALPHABET) + 1, vocab - 1)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*BYTE_ALPHABET, 2 * space, *numbered, END],
        "tokenizer.ggml.token_type": [*[NORMAL] * (vocab - 1), CONTROL],
        "tokenizer.ggml.merges": [f"{space} {space}"],
        "tokenizer.ggml.eos_token_id": vocab - 1,
        "tokenizer.ggml.padding_token_id": vocab - 1,
    }
