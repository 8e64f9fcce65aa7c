"""Thirty user messages of everyday and technical kinds, written for this benchmark.

No draft of ours is trained on them: `training` drops any text that shares 13 tokens in a row with one. A suite puts
the model's chat template around each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from draftwood.bench.prompts.humaneval import Prompt
from draftwood.errors import UsageError

if TYPE_CHECKING:
    from draftwood.text.tokenizer import Tokenizer


def for_target(tokenizer: Tokenizer | None) -> list[Prompt]:
    """The messages in the target's chat template, each opening a chat; a UsageError for a target without one."""
    template = None if tokenizer is None else tokenizer.chat_template
    if template is None:
        raise UsageError("this target has no chat template, so it cannot be asked chat questions; use other prompts.")
    return [Prompt(p.name, template.render([{"role": "user", "content": p.text}])) for p in PROMPTS]


_BUGGY: Final = """\
def monthly_totals(bookings, totals={}):
    for booking in bookings:
        month = booking["date"][:7]
        totals[month] = totals.get(month, 0) + booking["nights"]
    return totals
"""

_QUEUE: Final = """\
class WaitingRoom:
    def __init__(self, chairs):
        self.chairs = chairs
        self.patients = []

    def arrive(self, patient):
        if len(self.patients) == self.chairs:
            return False
        self.patients.append(patient)
        return True

    def call_next(self):
        return self.patients.pop(0)
"""

_MINUTES: Final = (
    "Residents of Harrow Court met on 14 November. The lift will be out of order for nine days from the 2nd of "
    "December, so Mr Quaye offered to carry shopping upstairs. The bicycle cellar stays open, but keys must be "
    "returned to flat 3 by Sunday. Heating costs rose by a fifth; the owners' agent will explain why in January."
)

PROMPTS: Final = (
    Prompt("ladder_gutter", "The gutter above our porch drips whenever it rains. Can I seal it myself, and with what?"),
    Prompt("night_shift", "I start night shifts at a bakery next month. How should I plan sleep and meals?"),
    Prompt(
        "neighbour_drums", "Our upstairs neighbour practises drums at dinner time. Write her a note that stays kind."
    ),
    Prompt(
        "leftover_rice",
        "There is a bowl of cooked rice, half a cabbage and two eggs. What can be dinner in 20 minutes?",
    ),
    Prompt(
        "tide_pool",
        "Why do the pools between rocks at the coast fill twice a day? My niece is eight and wants to know.",
    ),
    Prompt("moss_story", "Tell me a short tale in which moss slowly takes over an abandoned fairground."),
    Prompt("second_hand_cello", "What should I listen and look for when trying out a second-hand cello?"),
    Prompt(
        "visa_postponed",
        "My visa came late, so I must postpone my first day at Fennel Studio by two weeks. Draft the mail.",
    ),
    Prompt(
        "bread_or_crackers",
        "Which keeps longer on a sailing trip, rye bread or crackers, and how should each be packed?",
    ),
    Prompt(
        "stage_fright", "Before every choir concert my hands shake. Suggest what I could do in the last ten minutes."
    ),
    Prompt("sundial", "How would I build a simple sundial in the school yard, and why is it wrong by some minutes?"),
    Prompt("haggling", "Is it rude to haggle at a flea market? Give me three sentences that I could use."),
    Prompt("limerick", "Compose a limerick on a goose that wanted to become a tax inspector."),
    Prompt(
        "two_offers",
        "Offer A: 31,000 a year, ten minutes by foot. Offer B: 36,500, ninety minutes by train. Help me weigh them.",
    ),
    Prompt(
        "aquarium",
        "An aquarium measures 80 by 35 by 40 centimetres. How many litres does it hold if filled to nine tenths?",
    ),
    Prompt(
        "lighthouse_advert",
        "Write a cheerful advert for guided tours of our lighthouse, with prices for adults and for families.",
    ),
    Prompt("glacier_speed", "Do glaciers really flow? Explain what moves, how fast, and how anybody could measure it."),
    Prompt("minutes_list", f"Turn these minutes into a list of who does what and when.\n\n{_MINUTES}"),
    Prompt("minutes_short", f"{_MINUTES}\n\nGive me the gist of this in a single sentence."),
    Prompt(
        "gear_table",
        "Make a table of what to wear for cycling at -5, 8, 17 and 30 degrees, with a column for hands and one for "
        "feet.",
    ),
    Prompt("mutable_default", f"Why does this return strange totals when I call it twice?\n\n```python\n{_BUGGY}```"),
    Prompt("waiting_room_tests", f"Write pytest tests for this class.\n\n```python\n{_QUEUE}```"),
    Prompt("waiting_room_docs", f"```python\n{_QUEUE}```\n\nPrint the class again with a docstring in each method."),
    Prompt(
        "parking_fee",
        "Write a Python function for a car park: the first half hour is free, every further hour that has begun costs "
        "1.80, and a day never costs more than 14.",
    ),
    Prompt(
        "seed_packets",
        "Give me a JSON array of four seed packets with the keys plant, sow_from, sow_until and depth_cm.",
    ),
    Prompt(
        "ssh_refused", "ssh says 'Connection refused' for my Raspberry Pi since this morning. In which order do I look?"
    ),
    Prompt(
        "sql_late_books",
        "Table loans(member, book, due, returned). Which SQL finds members with three or more overdue books?",
    ),
    Prompt(
        "generator_or_list", "When reading a 6 GB log in Python, why would I yield lines and not collect them first?"
    ),
    Prompt(
        "git_wrong_branch",
        "I committed on the release branch by mistake, not pushed yet. How do I move it to my own branch?",
    ),
    Prompt(
        "sourdough_formula",
        "My dough has 450 g flour, 315 g water, 9 g salt and 90 g starter. What is its hydration, and how do I scale "
        "it up for three loaves?",
    ),
)

DIGEST: Final = "784c94b89c59e8e3766a01fea4a3b672b8e42de32d925a872a8705967808d580"
"""`prompts_sha256(PROMPTS)`: whoever changes a text begins a new series of measurements."""
