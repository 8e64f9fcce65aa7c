"""`draftwood chat`: the conversation that the model sees, and the ways out."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from draftwood.cli.main import main
from draftwood.errors import UsageError
from tests.cli import fakes
from tests.cli.fakes import Behaviour


def say(monkeypatch: pytest.MonkeyPatch, lines: Iterable[str | type[BaseException]]) -> None:
    """Let the user type these lines, or raise what Ctrl-C or Ctrl-D raises; then the input ends."""
    script = iter(lines)

    def fake_input(prompt: str = "") -> str:
        line = next(script, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", fake_input)


def prompts(behaviour: Behaviour) -> list[str]:
    return [bytes(request["prompt"]).decode() for request in behaviour.requests]


def test_history_and_new(
    target: str, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say(monkeypatch, ["hello", "", "  more ", "/new", "again", "/quit", "never"])
    assert main(["chat", target, "--system", "be brief", "-n", "2", "--method", "ar"]) == 0
    first = len("<system>be brief<user>hello<assistant>")
    answer = "".join(chr(97 + (first + index) % 26) for index in range(2))
    assert prompts(behaviour) == [
        "<system>be brief<user>hello<assistant>",
        f"<system>be brief<user>hello<assistant>{answer}<user>more<assistant>",
        "<system>be brief<user>again<assistant>",
    ]
    captured = capsys.readouterr()
    assert captured.out.startswith(answer + "\n")
    assert captured.err.startswith("model.gguf on cpu, draft lookup, room for 64 tokens.\n")
    assert "tok/s" in captured.err and "tok/s" not in captured.out


def test_first_interrupt_stops_the_answer_second_ends(
    target: str, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour.interrupt_after = 3
    say(monkeypatch, ["hello", "go on", KeyboardInterrupt])
    assert main(["chat", target, "-n", "9"]) == 130
    answer = "".join(chr(97 + (len("<user>hello<assistant>") + index) % 26) for index in range(3))
    assert prompts(behaviour)[1] == f"<user>hello<assistant>{answer}<user>go on<assistant>"


def test_a_question_stopped_before_its_first_word_is_forgotten(
    target: str, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour.interrupt_after = 0
    say(monkeypatch, ["hello", "again"])
    assert main(["chat", target, "-n", "9"]) == 0
    assert prompts(behaviour) == ["<user>hello<assistant>", "<user>again<assistant>"]
    assert "tok/s" not in capsys.readouterr().err


def test_a_refused_message_is_taken_back(
    target: str, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = fakes.FakeEngine.stream

    def stream_or_refuse(self: fakes.FakeEngine, prompt: list[int], *args: object, **options: object) -> object:
        if b"long" in bytes(prompt):
            raise UsageError("the prompt does not fit the context.")
        return stream(self, prompt, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fakes.FakeEngine, "stream", stream_or_refuse)
    say(monkeypatch, ["long", "short"])
    assert main(["chat", target, "-n", "2"]) == 0
    assert prompts(behaviour) == ["<user>short<assistant>"]
    assert "does not fit the context" in capsys.readouterr().err


def test_no_template_is_said_before_the_first_line(
    target: str, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour.has_template = False
    say(monkeypatch, [AssertionError])
    assert main(["chat", target]) == 2
