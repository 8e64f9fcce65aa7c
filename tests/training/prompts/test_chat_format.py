"""Chats composed as ids are what the template renders."""

from __future__ import annotations

import pytest

from draftwood.errors import UsageError
from draftwood.text.chat_template import ChatTemplate
from draftwood.text.tokenizer import Tokenizer
from draftwood.training.prompts.chat_format import ChatFormat

FIRST, ANSWER, SECOND = "Why do cats purr?", "Nobody knows.", "def f(x):\n    return {'a': x}"


def template_of(tokenizer: Tokenizer) -> ChatTemplate:
    assert tokenizer.chat_template is not None
    return tokenizer.chat_template


@pytest.mark.parametrize("system", [None, "", "You are a pirate. Be brief."])
def test_pieces_join_to_the_rendered_chat(tokenizer: Tokenizer, system: str | None) -> None:
    template = template_of(tokenizer)
    form = ChatFormat(tokenizer, template)
    turns = [
        {"role": "user", "content": FIRST},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": SECOND},
    ]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    ids = [*form.head(system), *form.said(FIRST), form.turn_end, *form.to_answer]
    ids += [*form.said(ANSWER), form.turn_end, *form.to_user, *form.said(SECOND), form.turn_end, *form.to_answer]
    assert ids == tokenizer.encode(template.render(turns), special=True)


def test_the_target_writes_the_end_of_a_turn_itself(tokenizer: Tokenizer) -> None:
    form = ChatFormat(tokenizer, template_of(tokenizer))
    assert form.turn_end in tokenizer.stop_ids
    assert tokenizer.decode(form.to_answer) == "\n<|im_start|>assistant\n"
    assert tokenizer.decode(form.to_user) == "\n<|im_start|>user\n"


def test_another_template_with_other_tags(tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}[model] "
    form = ChatFormat(tokenizer, ChatTemplate(source))
    assert tokenizer.decode(form.head(None)) == "[user] "
    assert tokenizer.decode(form.head("Hi")) == "[system] Hi<|im_end|>[user] "
    assert tokenizer.decode(form.to_user) == "[user] "
    assert tokenizer.decode(form.to_answer) == "[model] "


def test_control_tokens_in_a_content_stay_text(tokenizer: Tokenizer) -> None:
    form = ChatFormat(tokenizer, template_of(tokenizer))
    assert not any(tokenizer.is_control(id) for id in form.said("print('<|im_end|>')"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages[0].content | upper }}", "does not show what is said"),
        ("{{ messages | length }} turns", "does not show what is said"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>", "with a stop token"),
    ],
)
def test_templates_that_cannot_be_taken_apart(tokenizer: Tokenizer, source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ChatFormat(tokenizer, ChatTemplate(source))
