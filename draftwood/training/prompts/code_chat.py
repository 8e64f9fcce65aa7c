"""Requests about real Python source."""

from __future__ import annotations

from random import Random
from typing import Final

from draftwood.training.prompts.desk import Desk, Draft
from draftwood.training.prompts.python_source import Piece

_ABOUT: Final = (
    "Explain what this code does.",
    "Explain this code line by line.",
    "What does this {kind} do? Answer in two sentences.",
    "What does `{name}` return?",
    "What are the parameters of `{name}`, and what type does each have?",
    "Which errors can this code raise, and when?",
    "Find possible bugs in this code.",
    "Are there edge cases that this code does not handle?",
    "Review this code. What would you improve?",
    "Write unit tests for `{name}` with pytest.",
    "Write a test with unittest for this {kind}.",
    "Show an example of how `{name}` is used.",
    "Refactor this code to make it easier to read.",
    "Simplify this {kind}.",
    "Add type hints to this code.",
    "Add comments to this code.",
    "Add error handling to this code.",
    "Add logging to this code.",
    "Rewrite this {kind} with clearer variable names.",
    "Rewrite this code in another way.",
    "Rename `{name}` to `{other}` and print the whole code again.",
    "Repeat this code exactly, without any comments.",
    "Print this code again with an added docstring.",
    "Translate this code to JavaScript.",
    "What is the time complexity of this code?",
    "Summarize this {kind} as a list of steps.",
    "Write a short README section about this {kind}.",
    "Suggest three better names for `{name}`.",
    "Which modules have to be imported for this code?",
    "Write a commit message for a change that adds this {kind}.",
    "Turn this into a pseudocode description.",
    "I don't understand this {kind}. Can you help me?",
)
_ADD_DOCSTRING: Final = (
    "Add a docstring to this {kind}.",
    "Write a docstring for `{name}`.",
    "Document this {kind}. Show the whole code.",
    "Write a one-line docstring for this code.",
    "Add a docstring in Google style.",
)
_COMPLETE: Final = (
    "Complete this {kind}.",
    "Continue this code.",
    "Finish the implementation of `{name}`.",
    "Write the rest of this {kind}.",
    "The end of this {kind} is missing. Please add it.",
)
_IMPLEMENT: Final = (
    "Implement this {kind}.",
    "Write the body of `{name}`.",
    "Complete the function. Return the whole code.",
    "Fill in the code according to the docstring.",
)
_OTHER_NAMES: Final = (
    "process",
    "run_task",
    "compute_result",
    "handle",
    "load_items",
    "make_report",
    "Worker",
    "helper",
)


def task(draw: Random, desk: Desk) -> Draft:
    """A piece of code and what to do with it."""
    piece = draw.choice(desk.stock.pieces)
    lot = draw.random()
    if lot < 0.62:
        request, code = draw.choice(_ABOUT), piece.text
        if draw.random() < 0.3:
            code = piece.without_docstring
    elif lot < 0.76:
        request, code = draw.choice(_ADD_DOCSTRING), piece.without_docstring
    elif lot < 0.90 or not piece.docstring:
        request, code = draw.choice(_COMPLETE), _beginning(piece, draw)
    else:
        request, code = draw.choice(_IMPLEMENT), piece.text[: piece.body]
    kind = "class" if piece.is_class else "function"
    request = request.format(kind=kind, name=piece.name, other=draw.choice(_OTHER_NAMES))
    return Draft(desk.asked(draw, _laid_out(request, code.rstrip(), draw)), piece.file)


def _beginning(piece: Piece, draw: Random) -> str:
    """Signature, docstring and a part of the body."""
    body = piece.text[piece.body :].splitlines(keepends=True)
    return piece.text[: piece.body] + "".join(body[: int(len(body) * draw.uniform(0.2, 0.8))])


def _laid_out(request: str, code: str, draw: Random) -> str:
    """The request above or below the code, the code fenced or bare."""
    fence = draw.choices(("```python\n{}\n```", "```\n{}\n```", "{}"), (0.6, 0.15, 0.25))[0]
    block = fence.replace("{}", code)
    gap = draw.choice(("\n\n", "\n\n", "\n"))
    return f"{request}{gap}{block}" if draw.random() < 0.75 else f"{block}{gap}{request}"
