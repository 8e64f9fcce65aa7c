"""Arithmetic, tables, JSON, lists and short facts from templates with random slots.

A template's name and its subject together are the source, so that a subject of a template is on one side only.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from random import Random
from typing import Final

from draftwood.training.prompts.desk import Desk, Draft
from draftwood.training.prompts.word_lists import fill, read_lists

_Record = dict[str, str | int | float]


def task(draw: Random, desk: Desk) -> Draft:
    """One of the templates, filled in."""
    template = draw.choice(_TEMPLATES)
    subject, text = template(draw)
    return Draft(desk.asked(draw, text), f"{template.__name__}: {subject}")


def _word(draw: Random, name: str) -> str:
    return draw.choice(read_lists("things.txt")[name])


def _words(draw: Random, name: str, least: int, most: int) -> list[str]:
    words = read_lists("things.txt")[name]
    return draw.sample(words, min(len(words), draw.randint(least, most)))


def _first_name(draw: Random) -> str:
    return _word(draw, "person")


def _records(draw: Random, least: int = 3, most: int = 6) -> tuple[str, list[_Record]]:
    """What the records are about, and some of them."""
    kind = draw.choice(("products", "pupils", "cities", "books", "orders", "animals", "teams", "rooms"))
    number = draw.randint(least, most)
    columns: dict[str, Callable[[], _Record]] = {
        "products": lambda: {
            "product": _word(draw, "goods"),
            "price": draw.randint(2, 400) / 2,
            "stock": draw.randint(0, 90),
        },
        "pupils": lambda: {"name": _first_name(draw), "age": draw.randint(9, 17), "mark": draw.randint(1, 100)},
        "cities": lambda: {
            "city": _word(draw, "city"),
            "visitors": draw.randint(10, 900) * 100,
            "museums": draw.randint(1, 40),
        },
        "books": lambda: {
            "title": _word(draw, "title"),
            "year": draw.randint(1890, 2023),
            "pages": draw.randint(80, 700),
        },
        "orders": lambda: {
            "order": draw.randint(1000, 9999),
            "customer": _first_name(draw),
            "item": _word(draw, "goods"),
            "count": draw.randint(1, 12),
        },
        "animals": lambda: {
            "animal": _word(draw, "animal"),
            "weight_kg": draw.randint(1, 900),
            "legs": draw.choice((2, 4)),
        },
        "teams": lambda: {
            "team": _word(draw, "colour") + " " + _word(draw, "animal") + "s",
            "won": draw.randint(0, 12),
            "lost": draw.randint(0, 12),
        },
        "rooms": lambda: {"room": f"{draw.randint(1, 4)}{draw.randint(1, 29):02}", "seats": draw.randint(4, 60)},
    }
    return kind, [columns[kind]() for _ in range(number)]


def _as_json(draw: Random, records: list[_Record]) -> str:
    return json.dumps(records, indent=draw.choice((None, 2, 4)))


def _as_csv(draw: Random, records: list[_Record]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), delimiter=draw.choice(",,;"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().strip()


def _as_markdown(_: Random, records: list[_Record]) -> str:
    head = list(records[0])
    lines = [head, ["---"] * len(head), *([str(value) for value in record.values()] for record in records)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _as_lines(_: Random, records: list[_Record]) -> str:
    return "\n".join(", ".join(f"{key}: {value}" for key, value in record.items()) for record in records)


_FORMS: Final = {"JSON": _as_json, "CSV": _as_csv, "a Markdown table": _as_markdown, "key: value lines": _as_lines}


def _convert(draw: Random) -> tuple[str, str]:
    kind, records = _records(draw)
    have, want = draw.sample(list(_FORMS), 2)
    shown = _FORMS[have](draw, records)
    request = draw.choice(
        ("Convert this to {}.", "Write the same data as {}.", "Turn this into {}:", "Give me this as {}.")
    )
    return f"{kind} from {have} to {want}", f"{request.format(want)}\n\n{shown}"


def _question_about_data(draw: Random) -> tuple[str, str]:
    kind, records = _records(draw, 4, 8)
    form = draw.choice(list(_FORMS))
    number = draw.choice([key for key, value in records[0].items() if not isinstance(value, str)])
    label = next(iter(records[0]))
    request = draw.choice(
        (
            f"Sort these {kind} by {number}, largest first.",
            f"Which of these {kind} has the largest {number}?",
            f"What is the sum of {number}? Show how you add it up.",
            f"List only the {label} of each entry.",
            f"Add a row with a new entry to this list of {kind}, and print everything again.",
            f"Add a column with a short comment for each of these {kind}.",
            f"Describe these {kind} in three sentences.",
            f"Write a Python list of dictionaries for these {kind}.",
            f"Write SQL to create a table for these {kind} and insert the rows.",
            f"Change {number} to 10 in the first entry and write the data again.",
        )
    )
    return f"{kind}, {request.split()[0]}", f"{request}\n\n{_FORMS[form](draw, records)}"


def _invent_data(draw: Random) -> tuple[str, str]:
    thing, number = _word(draw, "collection"), draw.randint(3, 10)
    request = draw.choice(
        (
            f"Write a JSON object that describes {thing}.",
            f"Make a Markdown table with {number} rows about {thing}.",
            f"Write a JSON list of {number} entries for {thing}. Use the keys id, name and price.",
            f"Write a YAML file that describes {thing}.",
            f"Write an HTML list about {thing}.",
            f"Write {number} lines of CSV about {thing}, with a header.",
            f"Write an XML document with {number} entries about {thing}.",
            f"Design a database table for {thing}. Give the columns and their types.",
            f"Write a Python dictionary with data about {thing}.",
            f"Write an INI file with settings for {thing}.",
        )
    )
    return thing, request


def _list_things(draw: Random) -> tuple[str, str]:
    thing, number = _word(draw, "listable"), draw.randint(3, 15)
    request = draw.choice(
        (
            f"List {number} {thing}.",
            f"Name {number} {thing} and describe each in one sentence.",
            f"Give me {number} {thing} in alphabetical order.",
            f"Write a numbered list of {number} {thing}.",
            f"{number} {thing}, please, separated by commas.",
            f"List {number} {thing} with one fact about each.",
            f"Make a table of {number} {thing} with two columns.",
        )
    )
    return thing, request


def _sum(draw: Random) -> tuple[str, str]:
    sign = draw.choice("+-*/")
    a, b = (draw.randint(2, 12), draw.randint(2, 30)) if sign == "*" else (draw.randint(10, 999), draw.randint(2, 99))
    if sign == "/":
        a = b * draw.randint(2, 30)
    request = draw.choice(
        (
            "What is {}? Show your work.",
            "Calculate {} step by step.",
            "Explain how to compute {} without a calculator.",
            "{} = ? Explain your answer.",
            "Solve {} and check the result.",
        )
    )
    return f"{sign} {b}", request.format(f"{a} {sign} {b}")


def _story_sum(draw: Random) -> tuple[str, str]:
    lists = read_lists("things.txt")
    numbers = {name: tuple(str(draw.randint(low, high)) for _ in range(2)) for name, low, high in _RANGES}
    story = draw.choice(lists["story"])
    text, first = fill(story, {**lists, **numbers}, draw)
    ending = draw.choice(
        ("", "", " Explain your steps.", " Think step by step.", " Answer with a full sentence and the calculation.")
    )
    return f"{story[:40]} {first}", text + ending


_RANGES: Final = (("few", 2, 9), ("some", 10, 40), ("many", 41, 400))


def _sequence(draw: Random) -> tuple[str, str]:
    start, step, number = draw.randint(1, 30), draw.randint(2, 12), draw.randint(4, 6)
    kind = draw.choice(("adding", "doubling", "squares", "alternating", "subtracting"))
    values = {
        "adding": [start + step * i for i in range(number)],
        "doubling": [start * 2**i for i in range(number)],
        "squares": [(start + i) ** 2 for i in range(number)],
        "alternating": [start + (step if i % 2 else 0) for i in range(number)],
        "subtracting": [200 + start - step * i for i in range(number)],
    }[kind]
    shown = ", ".join(map(str, values))
    request = draw.choice(
        (
            f"Continue the sequence: {shown}. Write the next ten numbers and name the rule.",
            f"What comes next: {shown}, ...? Explain the rule.",
            f"Here is a sequence: {shown}. Describe it, and continue it with five more terms.",
        )
    )
    return f"{kind} {step}", request


def _counting(draw: Random) -> tuple[str, str]:
    first, step = draw.randint(1, 60), draw.randint(1, 9)
    last = first + step * draw.randint(9, 25)
    request = draw.choice(
        (
            f"Count from {first} to {last} in steps of {step}.",
            f"Write the numbers from {last} down to {first} in steps of {step}.",
            f"Write the multiplication table of {first}.",
            f"List the multiples of {step + 1} between {first} and {last}, and say how many there are.",
            f"Write the numbers from {first} to {first + 12} as words.",
            f"Make a table of the numbers from {first} to {first + 8}, their squares and their cubes.",
        )
    )
    return f"{request.split()[0]} {first}", request


def _order_words(draw: Random) -> tuple[str, str]:
    kind = draw.choice(("goods", "animal", "city", "food", "person"))
    words = _words(draw, kind, 5, 12)
    shown = draw.choice((", ", "\n", " ", "; ")).join(words)
    request = draw.choice(
        (
            "Sort these words alphabetically:",
            "Write these words in reverse order:",
            "Number these words:",
            "Write one sentence with each of these words:",
            "Group these words by their first letter:",
            "Write the plural of each word:",
            "Write these words in capital letters, one on each line:",
            "Make a Markdown table with these words and the number of their letters:",
            "Make a Python list of strings from these words:",
            "Write a short story that uses these words:",
            "Which of these does not fit, and why?",
        )
    )
    return f"{kind}, {words[0]}", f"{request} {shown}" if "\n" not in shown else f"{request}\n{shown}"


def _convert_units(draw: Random) -> tuple[str, str]:
    have, want = draw.choice(
        (
            ("kilometres", "miles"),
            ("miles", "kilometres"),
            ("kilograms", "pounds"),
            ("pounds", "kilograms"),
            ("litres", "gallons"),
            ("degrees Celsius", "degrees Fahrenheit"),
            ("degrees Fahrenheit", "degrees Celsius"),
            ("inches", "centimetres"),
            ("metres", "feet"),
            ("hours", "seconds"),
            ("days", "minutes"),
            ("grams", "ounces"),
            ("hectares", "square metres"),
            ("metres per second", "kilometres per hour"),
            ("megabytes", "bytes"),
        )
    )
    number = draw.randint(2, 250)
    request = draw.choice(
        (
            f"Convert {number} {have} to {want}. Show the formula.",
            f"How many {want} are {number} {have}? Explain the calculation.",
            f"Make a table that converts {number}, {number + 5}, {number + 10} and {number + 20} {have} to {want}.",
            f"Write a Python function that converts {have} to {want}, and call it with {number}.",
        )
    )
    return f"{have} to {want}", request


def _schedule(draw: Random) -> tuple[str, str]:
    tasks = _words(draw, "task", 3, 6)
    day = draw.choice(("Monday", "Saturday", "a working day", "a day off", "Sunday", "an exam day"))
    hour = draw.randint(6, 10)
    request = draw.choice(
        (
            f"Make a schedule for {day} that starts at {hour}:00. I have to: {', '.join(tasks)}.",
            f"Make a to-do list with times for {day} from these notes: {'; '.join(tasks)}.",
            f"Plan {day} as a table with the columns time, task and place. Tasks: {', '.join(tasks)}.",
            f"In which order should I do this on {day}? {', '.join(tasks)}. Give reasons.",
        )
    )
    return f"{day}, {tasks[0]}", request


def _fact(draw: Random) -> tuple[str, str]:
    place = _word(draw, "country")
    request = draw.choice(
        (
            f"What is the capital of {place}, and what is it known for?",
            f"Which languages are spoken in {place}? Give some background.",
            f"Which countries border {place}?",
            f"Give me five short facts about {place}.",
            f"What is the currency of {place}? Write two sentences about it.",
            f"Describe the flag of {place}.",
            f"Name three rivers or mountains in {place} and say where they are.",
            f"Write a fact sheet about {place} with the lines capital, language, currency, area and population.",
            f"Describe the climate of {place}.",
            f"Write a JSON object with facts about {place}.",
        )
    )
    return place, request


def _word_facts(draw: Random) -> tuple[str, str]:
    word = _word(draw, "vocabulary")
    request = draw.choice(
        (
            f'What does the word "{word}" mean? Give two example sentences.',
            f'Give five synonyms for "{word}" and use each in a sentence.',
            f'What is the opposite of "{word}"? Explain it in a sentence and give examples.',
            f'Spell "{word}" letter by letter, then use it in a sentence.',
            f'Write a dictionary entry for "{word}".',
            f'Write five sentences that contain the word "{word}".',
            f'Which words rhyme with "{word}"? Write a short poem with them.',
        )
    )
    return word, request


def _classify(draw: Random) -> tuple[str, str]:
    lists = read_lists("things.txt")
    sentences = draw.sample(lists["opinion"], draw.randint(2, 5))
    shown = "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))
    request = draw.choice(
        (
            "Is each of these sentences positive, negative or neutral? Give a reason.",
            "Classify the mood of these sentences in a table.",
            "Write a friendly answer to each of these comments.",
            "Rewrite each sentence so that it says the opposite.",
            'Return a JSON list with the keys "text" and "mood" for these sentences.',
            "What are these people talking about? Name the product for each sentence.",
        )
    )
    return sentences[0][:30], f"{request}\n\n{shown}"


_TEMPLATES: Final = (
    _convert,
    _question_about_data,
    _invent_data,
    _list_things,
    _sum,
    _story_sum,
    _story_sum,
    _sequence,
    _counting,
    _order_words,
    _convert_units,
    _schedule,
    _fact,
    _word_facts,
    _classify,
)
