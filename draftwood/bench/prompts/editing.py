"""One editing task of our own: a function to be written again with one change.

Nearly every token of a good answer stands in the prompt already, so a look-up drafter can propose long
runs of it. The answer is opened with the changed first line: a small model then copies the body.
"""

from __future__ import annotations

from draftwood.bench.prompts.humaneval import Prompt
from draftwood.text.chat_template import ChatTemplate

_FUNCTION = '''\
def read_settings(path, separator="="):
    """Read `key = value` lines of a text file into a dictionary."""
    settings = {}
    section = None
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            if line.startswith("[") and line.endswith("]"):
                section = line[1:-1].strip()
                settings.setdefault(section, {})
                continue
            key, found, value = line.partition(separator)
            if not found:
                raise ValueError(f"{path}, line {number}: no {separator!r} in {line!r}")
            key = key.strip().lower()
            value = value.strip()
            if value.lower() in ("true", "false"):
                value = value.lower() == "true"
            elif value.isdigit():
                value = int(value)
            target = settings if section is None else settings[section]
            target[key] = value
    return settings
'''

REQUEST = (
    'Rewrite this function with the parameter separator=":" instead of separator="=". '
    f"Keep all other lines as they are.\n\n```python\n{_FUNCTION}```"
)
OPENING = '```python\ndef read_settings(path, separator=":"):'


def editing_prompt(template: ChatTemplate | None) -> Prompt:
    """The task in the model's chat template (raw for a model without one), with the answer begun."""
    if template is None:
        return Prompt("edit_read_settings", f"{REQUEST}\n\n{OPENING}")
    return Prompt("edit_read_settings", template.render([{"role": "user", "content": REQUEST}]) + OPENING)
