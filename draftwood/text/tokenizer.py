"""Byte-level BPE tokeniser built from the metadata of a GGUF file.

The `tokenizers` library splits and merges. Which tokens are cut out of the text beforehand, what a token is
as bytes and where a generation ends are facts of the GGUF file that the library has no notion of: they are
decided here. Sources: SPEC-qwen35 section 5, SPEC-llama "Tokenizer".
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import tokenizers
from tokenizers import models, pre_tokenizers

from draftwood.errors import FormatError, UnsupportedModelError, UsageError
from draftwood.text.chat_template import ChatTemplate


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut into words before merging.

    `splits` are regular expressions applied in order, each inside the pieces left by the one before; every
    match and every gap is a piece. `ignore_merges`: a word that is a vocabulary entry is taken whole.
    `adds_bos`: whether a text begins with the BOS token if the file does not say.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False


# Spelled out rather than `(?i:...)`, whose Unicode folding would also take the long s (U+017F) for an s.
_CONTRACTION: Final = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_QWEN2: Final = PreTokenizer(
    (rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",)
)
_QWEN35: Final = PreTokenizer(
    (
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
        rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
    )
)
_SMOLLM: Final = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3: Final = PreTokenizer(
    (
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    ),
    ignore_merges=True,
    adds_bos=True,
)

PRE_TOKENIZERS: Final[Mapping[str, PreTokenizer]] = {
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "qwen35": _QWEN35,
    "smollm": _SMOLLM,
    "refact": _SMOLLM,
    "starcoder": _SMOLLM,
    "command-r": _SMOLLM,
    "codeshell": _SMOLLM,
    "exaone": _SMOLLM,
    "minerva-7b": _SMOLLM,
    "gpt-2": PreTokenizer((_GPT2,)),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}
"""Known values of `tokenizer.ggml.pre`; a new one is a new line here."""

STOP_TEXTS: Final = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
)
"""Control tokens that end a turn or a text by their name, whatever the file's `eos_token_id` says."""

_AGAIN: Final = "fetch or convert the file again"

# Values of `tokenizer.ggml.token_type` that stand for something; 5 is an unused row.
NORMAL: Final = 1
_UNKNOWN: Final = 2
CONTROL: Final = 3
_USER_DEFINED: Final = 4


def _byte_alphabet() -> str:
    """GPT-2's printable stand-ins: character i of the string is byte i."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    substitutes = iter(range(256, 512))
    return "".join(chr(byte if byte in printable else next(substitutes)) for byte in range(256))


BYTE_ALPHABET: Final = _byte_alphabet()
_BYTES_OF_CHARACTER: Final[Mapping[str, bytes]] = {c: bytes((byte,)) for byte, c in enumerate(BYTE_ALPHABET)}


class Tokenizer:
    """Text to token ids and back; made by `from_metadata`, immutable afterwards."""

    vocab_size: int
    """Number of tokens in the file; valid ids are 0 .. vocab_size - 1."""
    bos_id: int | None
    eos_id: int | None
    stop_ids: frozenset[int]
    """Ids after which a generation is over."""
    adds_bos: bool
    """Whether the file wants `bos_id` in front of a text."""

    def __init__(
        self,
        tokens: Sequence[str],
        token_types: Sequence[int],
        merges: Sequence[str],
        pre_tokenizer: PreTokenizer,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        extra_stop_ids: Iterable[int] = (),
        adds_bos: bool = False,
        chat_template_source: str | None = None,
    ) -> None:
        self.vocab_size = len(tokens)
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.adds_bos = adds_bos and bos_id is not None
        self._tokens = tokens
        self._types = token_types
        self._chat_template_source = chat_template_source

        ids = {text: id for id, text in enumerate(tokens)}
        named = (ids[text] for text in STOP_TEXTS if text in ids)
        stops = {*extra_stop_ids, *(id for id in named if self.is_control(id))}
        self.stop_ids = frozenset(stops if eos_id is None else stops | {eos_id})

        self._whole = _longest_first(tokens, token_types, (_UNKNOWN, CONTROL, _USER_DEFINED))
        self._whole_user_defined = _longest_first(tokens, token_types, (_USER_DEFINED,))
        self._bpe, self._stand_ins = _build_bpe(ids, merges, pre_tokenizer)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokeniser described by the `tokenizer.*` keys of a GGUF file.

        Raises FormatError if the vocabulary is missing or contradicts itself, UnsupportedModelError if its
        kind or its pre-tokeniser is not known.
        """
        if not metadata.get("tokenizer.ggml.tokens"):
            raise FormatError(
                "the file has no vocabulary (tokenizer.ggml.tokens); use one converted with its tokeniser"
            )
        model = metadata.get("tokenizer.ggml.model")
        if model != "gpt2":
            raise UnsupportedModelError(
                f"the file's tokeniser (tokenizer.ggml.model) is {_shown(model)}; "
                "the only known one is 'gpt2' (byte-level BPE)"
            )
        pre = metadata.get("tokenizer.ggml.pre")
        pre_tokenizer = PRE_TOKENIZERS.get(pre) if isinstance(pre, str) else None
        if pre_tokenizer is None:
            raise UnsupportedModelError(
                f"the file's pre-tokeniser (tokenizer.ggml.pre) is {_shown(pre)}; "
                f"known ones: {', '.join(PRE_TOKENIZERS)}"
            )

        tokens = _strings(metadata, "tokenizer.ggml.tokens")
        merges = _strings(metadata, "tokenizer.ggml.merges")
        token_types = metadata.get("tokenizer.ggml.token_type")
        if token_types is None:
            token_types = [NORMAL] * len(tokens)
        elif not _is_list_of(int, token_types) or len(token_types) != len(tokens):
            raise FormatError(
                f"tokenizer.ggml.token_type is not a list of {len(tokens)} numbers, one a token; {_AGAIN}"
            )

        stop_keys = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
        more_stops = [_token_id(metadata, key, len(tokens)) for key in stop_keys]
        template = metadata.get("tokenizer.chat_template")
        if not isinstance(template, str | None):
            raise FormatError(f"tokenizer.chat_template is {_shown(template)}, expected a text; {_AGAIN}")
        return cls(
            tokens,
            token_types,
            merges,
            pre_tokenizer,
            bos_id=_token_id(metadata, "tokenizer.ggml.bos_token_id", len(tokens)),
            eos_id=_token_id(metadata, "tokenizer.ggml.eos_token_id", len(tokens)),
            extra_stop_ids=[id for id in more_stops if id is not None],
            adds_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", pre_tokenizer.adds_bos)),
            chat_template_source=template or None,
        )

    def encode(self, text: str, special: bool, add_bos: bool = False) -> list[int]:
        """Token ids of `text`.

        `special`: control tokens written out in the text become those tokens, otherwise they are plain text.
        User-defined tokens are recognised either way. `add_bos` puts `bos_id` in front if the file asks for
        it (`adds_bos`). Bytes without a token are left out; lone surrogates are read as U+FFFD.
        """
        ids = [self.bos_id] if add_bos and self.adds_bos and self.bos_id is not None else []
        for piece in _cut_out(_well_formed(text), self._whole if special else self._whole_user_defined):
            if isinstance(piece, int):
                ids.append(piece)
                continue
            for id in self._bpe.encode(piece, add_special_tokens=False).ids:
                if id < self.vocab_size:
                    ids.append(id)
                else:
                    ids.extend(self._stand_ins[id])
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of `ids`, with U+FFFD where the bytes are not UTF-8.

        Control tokens appear by name, or not at all with `skip_special`. Raises UsageError for an id out of
        range.
        """
        return self.decode_bytes(ids, skip_special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], skip_special: bool = False) -> bytes:
        """The joined bytes of `ids`, which may end within a character; otherwise as `decode`."""
        return b"".join(self.token_bytes(id) for id in ids if not (skip_special and self.is_control(id)))

    def token_bytes(self, id: int) -> bytes:
        """The bytes a token stands for: empty for unused ones. Raises UsageError for an id out of range."""
        kind = self._type(id)
        text = self._tokens[id]
        if kind == NORMAL:
            return b"".join(_BYTES_OF_CHARACTER.get(c) or _utf8(c) for c in text)
        if kind in (_UNKNOWN, CONTROL, _USER_DEFINED):
            return _utf8(text)
        return b""

    def is_control(self, id: int) -> bool:
        """Whether a token is a mark and not text. Raises UsageError for an id out of range."""
        return self._type(id) in (_UNKNOWN, CONTROL)

    @functools.cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The file's chat template, None if it has none. Raises FormatError if it cannot be compiled."""
        # Compiled on first use, so that a broken template does not keep anyone from running a raw prompt.
        if self._chat_template_source is None:
            return None
        bos = "" if self.bos_id is None else self._tokens[self.bos_id]
        eos = "" if self.eos_id is None else self._tokens[self.eos_id]
        return ChatTemplate(self._chat_template_source, bos_token=bos, eos_token=eos)

    def _type(self, id: int) -> int:
        if not 0 <= id < self.vocab_size:
            raise UsageError(f"token id {id} is not in the vocabulary; valid ids are 0 to {self.vocab_size - 1}")
        return self._types[id]


def _build_bpe(
    ids: Mapping[str, int], merges: Sequence[str], pre_tokenizer: PreTokenizer
) -> tuple[tokenizers.Tokenizer, dict[int, list[int]]]:
    """The library's tokeniser, and what to write for the ids it has beyond the file's vocabulary.

    The library drops a byte without a token before merging, so that its neighbours merge across the gap,
    and refuses merges that make no token. Such texts get an id of their own here, to be replaced by the
    tokens of their bytes.
    """
    pairs: dict[tuple[str, str], None] = {}
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise FormatError(f"tokenizer.ggml.merges holds {_shown(merge)}, expected two parts and a space; {_AGAIN}")
        # Of a repeated pair the first rank counts.
        pairs.setdefault((left, right))

    vocabulary = dict(ids)
    first_stand_in = max(ids.values(), default=-1) + 1
    texts = [*BYTE_ALPHABET, *(text for left, right in pairs for text in (left, right, left + right))]
    missing = [text for text in dict.fromkeys(texts) if text not in vocabulary]
    stand_ins = {}
    for id, text in enumerate(missing, start=first_stand_in):
        vocabulary[text] = id
        stand_ins[id] = [ids[c] for c in text if c in ids]

    bpe = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=list(pairs), ignore_merges=pre_tokenizer.ignore_merges)
    )
    splits: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated") for pattern in pre_tokenizer.splits
    ]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    return bpe, stand_ins


def _longest_first(tokens: Sequence[str], types: Sequence[int], wanted: tuple[int, ...]) -> list[tuple[str, int]]:
    found = [(tokens[id], id) for id, kind in enumerate(types) if kind in wanted and tokens[id]]
    return sorted(found, key=lambda pair: -len(_utf8(pair[0])))


def _cut_out(text: str, whole: Sequence[tuple[str, int]]) -> list[str | int]:
    """`text` with the tokens of `whole` replaced by their ids, the list's first token first."""
    pieces: list[str | int] = [text] if text else []
    for token, id in whole:
        if token not in text:
            continue
        cut: list[str | int] = []
        for piece in pieces:
            if isinstance(piece, int):
                cut.append(piece)
                continue
            head, *rest = piece.split(token)
            cut.append(head)
            for part in rest:
                cut += (id, part)
        pieces = [piece for piece in cut if piece != ""]
    return pieces


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")


def _well_formed(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")
    return text


def _strings(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    value = metadata.get(key)
    if not _is_list_of(str, value):
        raise FormatError(f"{key} is {'missing' if value is None else 'not a list of strings'}; {_AGAIN}")
    return cast(Sequence[str], value)


def _is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, kind) for v in value)


def _token_id(metadata: Mapping[str, Any], key: str, vocab_size: int) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < vocab_size:
        raise FormatError(f"{key} is {_shown(value)}, expected a token id from 0 to {vocab_size - 1}; {_AGAIN}")
    return value


def _shown(value: object) -> str:
    """A value of the file, quoted and short enough for a message."""
    if value is None:
        return "missing"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
