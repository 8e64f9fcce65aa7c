"""What the target is asked to write: scripts of tokens to feed and of stretches that it writes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from draftwood.errors import FormatError

USER: Final = -1
"""In a script: the target writes the user's turn here, up to its end token and with it; nothing of it is learnt."""

ANSWER: Final = -2
"""In a script: the target answers here, up to a stop token and with it; the draft learns from this."""

_KEYS: Final = ("tokens", "offsets", "part", "parts", "source", "sources", "greedy", "cap")


@dataclass(frozen=True)
class Script:
    """One sequence to be played.

    tokens: ids to feed as they are, and USER or ANSWER. The target writes the end token of its stretch itself, so
    what follows a marker begins behind it. part: name of the genre. source: what the text was made from (a file, an
    opener, a topic); held-out text is split by it. greedy: answers at temperature 0. cap: tokens of each answer.
    """

    tokens: tuple[int, ...]
    part: str
    source: str
    greedy: bool
    cap: int


def write_scripts(path: Path, scripts: Sequence[Script]) -> None:
    """All scripts in one `.npz`, so that a machine without the tokeniser can play them."""
    parts = list(dict.fromkeys(script.part for script in scripts))
    sources = list(dict.fromkeys(script.source for script in scripts))
    part_of = {name: index for index, name in enumerate(parts)}
    source_of = {name: index for index, name in enumerate(sources)}
    lengths = np.fromiter((len(script.tokens) for script in scripts), np.int64, len(scripts))
    np.savez_compressed(
        path,
        tokens=np.fromiter((token for script in scripts for token in script.tokens), np.int32, int(lengths.sum())),
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        part=np.array([part_of[script.part] for script in scripts], np.uint8),
        parts=np.array(parts, np.str_),
        source=np.array([source_of[script.source] for script in scripts], np.int32),
        sources=np.array(sources, np.str_),
        greedy=np.array([script.greedy for script in scripts], np.bool_),
        cap=np.array([script.cap for script in scripts], np.int32),
    )


def read_scripts(path: Path) -> list[Script]:
    """The scripts that `write_scripts` wrote, in their order. Raises FormatError for another file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in _KEYS}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise FormatError(f"{path.name} does not hold scripts; run the stage `scripts` again.") from error
    tokens, offsets = arrays["tokens"].tolist(), arrays["offsets"].tolist()
    parts, sources = arrays["parts"].tolist(), arrays["sources"].tolist()
    rows = zip(
        offsets[:-1],
        offsets[1:],
        arrays["part"].tolist(),
        arrays["source"].tolist(),
        arrays["greedy"].tolist(),
        arrays["cap"].tolist(),
        strict=True,
    )
    return [
        Script(tuple(tokens[first:stop]), parts[part], sources[source], greedy, cap)
        for first, stop, part, source, greedy, cap in rows
    ]
