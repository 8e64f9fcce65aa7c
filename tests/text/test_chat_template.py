"""Rendered prompts against the oracle's, the names templates rely on, and the sandbox."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from draftwood.errors import FormatError, UsageError
from draftwood.formats.gguf import GGUFFile
from draftwood.text.chat_template import ChatTemplate
from draftwood.text.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "Hello!"}]


def render(source: str, messages: list[dict[str, Any]] = HELLO, **variables: Any) -> str:
    return ChatTemplate(source).render(messages, **variables)


def test_smollm2_prompts(oracle: Path, oracle_tokenizer: Callable[[str], Tokenizer]) -> None:
    tokenizer = oracle_tokenizer("smollm2/vocab-smollm2.gguf")
    expected = json.loads((oracle / "smollm2" / "smollm2.json").read_text(encoding="utf-8"))
    template = tokenizer.chat_template
    assert template is not None
    assert len(expected["chat"]) == 6
    for case in expected["chat"]:
        text = template.render(case["messages"], add_generation_prompt=case["add_generation_prompt"])
        assert text == case["text"]
        assert tokenizer.encode(text, special=True) == case["ids"]
    for prompt in expected["prompts"]:
        if prompt.get("messages"):
            assert template.render(prompt["messages"]) == prompt["text"]


def test_vendored_templates(vendored: Path) -> None:
    def rendered(name: str) -> str:
        metadata = GGUFFile.open(vendored / "models" / name).metadata
        template = Tokenizer.from_metadata(metadata).chat_template
        assert template is not None
        return template.render(HELLO)

    user = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    assert rendered("q35-c.Q4_K_M.gguf") == user + "<think>\n"
    assert rendered("l-b.Q4_1.gguf").endswith(user)
    assert rendered("l-b.Q4_1.gguf").startswith("<|im_start|>system\nYou are a helpful AI assistant")


def test_names_a_template_may_use() -> None:
    template = ChatTemplate("{{ bos_token }}|{{ eos_token }}|{{ add_generation_prompt }}|{{ mood }}", "<s>", "</s>")
    assert template.render(HELLO, mood="calm") == "<s>|</s>|True|calm"
    assert template.render(HELLO, add_generation_prompt=False) == "<s>|</s>|False|"
    assert render("{{ tools is none }} {{ documents is none }}") == "True True"
    assert render("{{ tools | length }}", tools=[1, 2]) == "2"
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.date.today().year + i) for i in (-1, 0)}


def test_blocks_are_trimmed() -> None:
    assert render("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"


def test_namespaces_loop_controls_and_neighbours() -> None:
    source = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}"
        "{% if m.role == 'skip' %}{% continue %}{% endif %}"
        "{% if m.role == 'end' %}{% break %}{% endif %}{% set ns.n = ns.n + 1 %}"
        "{{ loop.previtem.role if loop.previtem is defined else '-' }}{% endfor %}{{ ns.n }}"
    )
    assert render(source, [{"role": role} for role in ("user", "skip", "tool", "end", "user")]) == "-skip2"


def test_tojson_is_plain_json() -> None:
    assert render("{{ x | tojson }}", x={"b": "<é&'>", "a": [1, None]}) == '{"b": "<é&\'>", "a": [1, null]}'
    assert render("{{ x | tojson(indent=2) }}", x=[1]) == "[\n  1\n]"


def test_content_is_not_escaped() -> None:
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "<b>&'\""}]) == "<b>&'\""


def test_generation_block_is_transparent() -> None:
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b") == "aHello!b"


def test_refusal_of_the_template_is_quoted() -> None:
    with pytest.raises(UsageError, match="roles must alternate") as raised:
        render("{{ raise_exception('roles must\nalternate') }}")
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError) as raised:
        render("{{ raise_exception('no ' * 5000) }}")
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "source",
    ["{{ messages[0].name.first }}", "{{ 'x' + messages[0].number }}", "{{ messages[9].content.x }}"],
)
def test_messages_that_do_not_fit_are_a_usage_error(source: str) -> None:
    with pytest.raises(UsageError, match="refuses these messages"):
        render(source, [{"role": "user", "content": "a", "number": 1}])


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{{ x ", "{% for %}", "{{ x | nofilter }}", "{% nosuchtag %}", "(" * 9 + "{{" + "(" * 9],
)
def test_a_template_that_is_no_jinja_is_a_format_error(source: str) -> None:
    with pytest.raises(FormatError, match="cannot be read") as raised:
        ChatTemplate(source)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ [''] | map(attribute='__class__') | list }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ range.__self__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises((FormatError, UsageError)):
        render(source, messages)
    assert messages == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(10**99) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{% for j in range(99999) %}{% endfor %}{% endmacro %}"
        "{% for i in range(99999) %}{{ m() }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 10**10 }}",
        "{{ [0] * 10**10 }}",
        "{{ 10**10000 }}",
    ],
)
def test_a_template_that_runs_away_is_stopped(source: str) -> None:
    with pytest.raises(FormatError, match="forbidden") as raised:
        render(source)
    assert len(str(raised.value)) < 300


def test_ordinary_arithmetic_is_allowed() -> None:
    assert render("{{ 6 * 7 }} {{ 2 ** 10 }} {{ '-' * 3 }} {{ 2 * 'ab' }} {{ 0.5 * 4 }}") == "42 1024 --- abab 2.0"
    assert render("{% for i in range(1, 6, 2) %}{{ i }}{% endfor %}") == "135"
