"""Code that is simply continued, without a chat: files cut at a line end, and functions that have only their head."""

from __future__ import annotations

import re
from random import Random
from typing import Final

from draftwood.training.prompts.desk import Desk, Draft
from draftwood.training.prompts.word_lists import read_lists

_SHORTER: Final = 0.5
"""A model that goes on and on ends in a loop, so continuations are cut earlier than answers."""

_BEHIND_ANOTHER: Final = 0.4
"""Share of the heads of ours that stand below a real function, and the lines of the longest such function."""
_SHORT_LINES: Final = 20

_IMPORTS: Final = (
    "",
    "",
    "",
    "from typing import List\n\n",
    "from typing import Optional\n\n",
    "from typing import Dict, List\n\n",
    "from typing import Any, Tuple\n\n",
    "import math\n\n",
    "import re\n\n",
    "from collections import defaultdict\n\n",
    "#!/usr/bin/env python3\n\n",
    '"""Some small functions."""\n\n',
)
_STARTS: Final = (
    "",
    "    ",
    "    for",
    "    if",
    "    return",
    "    result =",
    "    result = []\n    for",
    "    #",
    "    n =",
)


def continuation(draw: Random, desk: Desk) -> Draft:
    """A beginning that the target continues."""
    lot = draw.random()
    if lot < 0.4:
        excerpt = draw.choice(desk.stock.excerpts)
        return Draft(desk.continued(_end(excerpt.text, draw)), excerpt.file, _SHORTER)
    if lot < 0.6:
        piece = draw.choice(desk.stock.pieces)
        head = piece.text[: piece.body].rstrip()
        if not piece.docstring:
            head = _end(piece.text, draw).rstrip()
        return Draft(desk.continued(head + draw.choice(("\n", "\n", ""))), piece.file, _SHORTER)
    text, name = _stub(draw)
    if draw.random() < _BEHIND_ANOTHER:
        other = draw.choice(desk.stock.pieces)
        if other.text.count("\n") <= _SHORT_LINES:
            text = f"{other.text}\n\n{text}"
    return Draft(desk.continued(text), f"stub: {name}", _SHORTER)


def _end(text: str, draw: Random) -> str:
    """The text, its last line without its break in one case of three."""
    return text if draw.random() < 0.67 else text.rstrip("\n")


def _stub(draw: Random) -> tuple[str, str]:
    """A function's head with its docstring and perhaps the first word of its body; and its name.

    A line of stubs.txt is `name(arguments) -> type | what it does | call => value | ...`.
    """
    head, purpose, *examples = (field.strip() for field in draw.choice(read_lists("stubs.txt")["stub"]).split("|"))
    name = head.partition("(")[0]
    if draw.random() < 0.35:
        head = _without_types(head)
    shown = [example.partition("=>") for example in examples] if draw.random() < 0.75 else []
    indent = "    "
    style = draw.randrange(4)
    if style == 0 or not shown:
        quotes = draw.choice(('"""', '"""', "'''"))
        doc = f"{indent}{quotes}{purpose}{quotes}\n"
    elif style == 1:
        lines = [purpose, *(f">>> {call.strip()}\n{indent}{value.strip()}" for call, _, value in shown)]
        doc = f'{indent}"""' + f"\n{indent}".join(lines) + f'\n{indent}"""\n'
    elif style == 2:
        calls = "".join(f"{indent}{call.strip()} -> {value.strip()}\n" for call, _, value in shown)
        doc = f'{indent}"""\n{indent}{purpose}\n\n{indent}Examples:\n{calls}{indent}"""\n'
    else:
        calls = "".join(f"{indent}>>> {call.strip()}\n{indent}{value.strip()}\n" for call, _, value in shown)
        doc = f"{indent}''' {purpose}\n{calls}{indent}'''\n"
    comment = draw.random() < 0.12
    opening = f"# {purpose}\n" if comment else ""
    text = draw.choice(_IMPORTS) + opening + f"def {head}:\n" + ("" if comment else doc)
    start = draw.choice(_STARTS) if draw.random() < 0.7 else ""
    return text + start.rstrip(" ") if start.strip() else text, name


def _without_types(head: str) -> str:
    """`f(a: int, b: str = "x") -> int` as `f(a, b="x")`."""
    bare = re.sub(r"\s*->.*$", "", head)
    bare = re.sub(r":\s*\"?[\w.]+\"?(\[[^()]*?\])?(?=\s*[,)=])", "", bare)
    return bare.replace(" = ", "=")
