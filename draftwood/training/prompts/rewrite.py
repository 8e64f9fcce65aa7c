"""Copying and rewriting: the answer uses the words of a text that stands in the request."""

from __future__ import annotations

from random import Random
from typing import Final

from draftwood.training.prompts.desk import Desk, Draft
from draftwood.training.prompts.word_lists import fill, read_lists

_ANY_TEXT: Final = (
    "Summarize this text in one sentence.",
    "Summarise the following paragraph in two sentences.",
    "Write a summary of the text below.",
    "Turn this text into a bulleted list.",
    "List the main points of this paragraph.",
    "Rewrite this text in simpler words.",
    "Explain this text to a child.",
    "Rewrite the paragraph in a more formal style.",
    "Rewrite the paragraph in a friendly, informal style.",
    "Shorten this text to half its length.",
    "Make this text longer and add an example.",
    "Paraphrase the following text.",
    "Give this text a title and repeat it below the title.",
    "Repeat the following text word for word.",
    "Copy this text, and put every sentence on its own line.",
    "Number the sentences of this text.",
    "Write three questions about this text, with answers.",
    "Which words in this text are the most important? List them.",
    "Write the text again as an e-mail.",
    "Rewrite this text in the past tense.",
    "Rewrite this text in the first person.",
    "Split the following text into two paragraphs with headings.",
    "Write down what the text says, as facts in short sentences.",
    "Write a tweet about this text.",
    "Continue this text with one more paragraph.",
    "What is the text about? Quote one sentence that shows it.",
    "Write the text again, with all sentences joined by semicolons.",
    "Translate this text into plain English.",
)
_FACTS: Final = (
    "Extract all names, places and numbers from this text.",
    "Extract the facts from this text as JSON.",
    "Who, where, when and how much? Answer with a list.",
    "Turn this text into a table with two columns, item and value.",
    "List every number in this text and what it means.",
    "Write this as a short news report.",
    "Write this as key: value lines.",
    "Rewrite this text and replace the name of the town with Oxford.",
    "Rewrite this text and change every price to 99 euros.",
    "Repeat this text, but write all names in capital letters.",
    "Write an answer to this message.",
    "Summarize this in one short sentence.",
    "Write three questions that this text answers, with the answers.",
)
_CORRECT: Final = (
    "Correct the mistakes in this text.",
    "Correct the grammar and spelling:",
    "Fix the errors in the following text and list them.",
    "Proofread this.",
    "Rewrite this in correct English.",
    "This text has mistakes. Write it again without them.",
)


def task(draw: Random, desk: Desk) -> Draft:
    """A text and what to do with it."""
    lists, lot = read_lists("prose.txt"), draw.random()
    if lot < 0.45:
        passage = draw.choice(desk.stock.passages)
        request, text, source = draw.choice(_ANY_TEXT), passage.text, passage.file
    elif lot < 0.57:
        text = draw.choice(lists["paragraph"])
        request, source = draw.choice(_ANY_TEXT), f"text: {text[:40]}"
    elif lot < 0.78:
        notice = draw.choice(lists["notice"])
        text, first = fill(notice, lists, draw)
        request, source = draw.choice(_FACTS), f"notice: {notice[:20]} {first}"
    elif lot < 0.84:
        text = " ".join(draw.sample(lists["wrong"], draw.randint(1, 4)))
        request, source = draw.choice(_CORRECT), f"text: {text[:40]}"
    else:
        passage = draw.choice(desk.stock.passages)
        request, text, source = draw.choice(_CORRECT), _with_slips(passage.text, draw), passage.file
    shown = draw.choice(('"{}"', "{}", "{}", "Text: {}", "'''\n{}\n'''")).replace("{}", text)
    gap = draw.choice(("\n\n", "\n\n", "\n", " "))
    both = f"{request}{gap}{shown}" if draw.random() < 0.8 else f"{shown}\n\n{request}"
    return Draft(desk.asked(draw, both), source)


def _with_slips(text: str, draw: Random) -> str:
    """The text with typing errors in about one word of eight."""
    words = text.split()
    for index, word in enumerate(words):
        if len(word) > 3 and draw.random() < 0.12:
            at = draw.randrange(1, len(word) - 1)
            words[index] = draw.choice(
                (
                    word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                    word[:at] + word[at + 1 :],
                    word[:at] + word[at] + word[at:],
                    word.lower(),
                )
            )
    return " ".join(words)
