"""Chat templates: untrusted Jinja source out of a model file, rendered in a sandbox.

The environment is the one templates are written for, that of Hugging Face's `apply_chat_template`: trimmed
blocks, `break` and `continue`, `tojson` without HTML escaping, `raise_exception`, `strftime_now`, the
`generation` block.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from draftwood.errors import FormatError, UsageError

MAX_LOOP_STEPS: Final = 1_000_000
"""Numbers that all `range()` calls of one rendering may give together."""

MAX_REPEATED_LENGTH: Final = 1_000_000
"""Longest text or list that `*` may produce."""

MAX_NUMBER: Final = 1e300
"""Largest number that `*` and `**` may produce."""


class ChatTemplate:
    """A compiled chat template. Raises FormatError if `source` is not valid Jinja."""

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        self.source = source
        self._special = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = _ENVIRONMENT.from_string(source)
        # Besides Jinja's own errors, hostile nesting makes Python's compiler fail in its ways.
        except Exception as error:
            raise FormatError(f"the file's chat template cannot be read: {_sentence(error)}") from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text of a conversation, to be tokenised with special parsing on.

        `messages` are plain mappings with `role`, `content` and what else the template reads;
        `add_generation_prompt` opens the assistant's turn; `variables` are further names for the template
        (`tools`, `enable_thinking`, ...). Raises UsageError with the template's own words if it refuses the
        messages, FormatError if it tries to leave the sandbox.
        """
        steps = _LoopSteps()
        known: dict[str, Any] = {"tools": None, "documents": None, **self._special, **variables}
        try:
            return self._template.render(
                {
                    **known,
                    "messages": messages,
                    "add_generation_prompt": add_generation_prompt,
                    "range": steps.range,
                }
            )
        except (SecurityError, OverflowError, RecursionError, MemoryError) as error:
            raise FormatError(f"the file's chat template did something forbidden: {_sentence(error)}") from error
        # A template is a program: an unexpected message can make it fail with any of Python's errors.
        except Exception as error:
            raise UsageError(f"the chat template refuses these messages: {_sentence(error)}") from error


class _LoopSteps:
    """A `range` whose total over one rendering is limited, so that nested loops end as well."""

    def __init__(self) -> None:
        self._left = MAX_LOOP_STEPS

    def range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        # `len` itself raises OverflowError for a range beyond the machine's integers.
        self._left -= len(numbers)
        if self._left < 0:
            raise OverflowError(f"range() over more than {MAX_LOOP_STEPS} numbers")
        return numbers


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        # Jinja would print nothing for an unsafe attribute unless something is done with it.
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r}")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _is_too_large(operator, left, right):
            raise OverflowError(f"the result of {operator!r} is too large")
        return super().call_binop(context, operator, left, right)


def _is_too_large(operator: str, left: Any, right: Any) -> bool:
    """Whether a product or power exceeds the limits, found without computing it."""
    repeats = any(isinstance(value, str | list | tuple) for value in (left, right))
    try:
        a, b = (float(len(v) if isinstance(v, str | list | tuple) else v) for v in (left, right))
        return bool(abs(a * b if operator == "*" else a**b) > (MAX_REPEATED_LENGTH if repeats else MAX_NUMBER))
    except OverflowError:
        return True
    except (TypeError, ValueError, ZeroDivisionError):
        return False  # not a product of numbers or lengths: the operator itself says why


class _GenerationBlock(Extension):
    """`{% generation %}`: marks the assistant's words for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refusal(jinja2.TemplateError):
    """What `raise_exception` raises."""


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[LoopControlExtension, _GenerationBlock],
        autoescape=False,
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_ENVIRONMENT: Final = _environment()


def _sentence(error: Exception) -> str:
    """The error's words on one line, short enough for a message; its kind if it has none."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else words[:197] + "..."
