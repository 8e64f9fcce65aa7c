"""`draftwood chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from draftwood.cli import options
from draftwood.cli.loading import draft_for, open_engine
from draftwood.cli.run import encode_messages
from draftwood.cli.terminal import note, reading
from draftwood.errors import UsageError

if TYPE_CHECKING:
    from draftwood.decode.params import SamplingParams
    from draftwood.engine.engine import Engine

Message = dict[str, str]


def chat(
    target: options.TargetArgument = "demo",
    draft: options.DefaultDraftOption = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system message.")] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--n-gen",
            "-n",
            callback=options.within("--n-gen", 1),
            metavar="N",
            help="Tokens of an answer, at most.",
        ),
    ] = 512,
    method: options.MethodOption = options.MethodName.auto,
    budget: options.BudgetOption = None,
    max_ctx: options.ContextOption = options.DEFAULT_CONTEXT,
    cache_type_k: options.KeyTypeOption = None,
    cache_type_v: options.ValueTypeOption = None,
    draft_type_k: options.DraftKeyTypeOption = None,
    draft_type_v: options.DraftValueTypeOption = None,
    draft_swa: options.DraftWindowOption = None,
    temp: options.TemperatureOption = 0.0,
    seed: options.SeedOption = 0,
    weights: options.WeightsOption = None,
    token_table: options.TableOption = None,
    vram: options.VramOption = None,
    device: options.DeviceOption = options.DeviceName.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.ThreadsOption = None,
) -> None:
    """Talk with a model in the terminal.

    Ctrl-C stops an answer, a second one ends; /new starts over.
    """
    from draftwood.decode.params import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temp, seed=seed)
    engine = open_engine(
        target,
        draft_for(target, draft),
        (cache_type_k, cache_type_v),
        (draft_type_k, draft_type_v),
        max_ctx,
        device,
        dtype,
        threads=threads,
        weights=weights,
        token_table=token_table,
        vram=vram,
        draft_window=draft_swa,
    )
    opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    encode_messages(engine, [*opening, {"role": "user", "content": ""}])  # no template: say so before the first line
    facts = engine.describe()
    note(f"{facts['target']} on {facts['device']}, draft {facts['draft']}, room for {facts['max_context']} tokens.")
    note("Type a message. Ctrl-C stops an answer, a second one ends. /new starts over, /quit ends.")
    messages = list(opening)
    while (line := _read_line()) is not None and line != "/quit":
        if line == "/new":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                answer = _answer(engine, messages, params, method.value, budget)
            except UsageError as error:
                messages.pop()
                note(f"draftwood: {error} (/new starts over)")
                continue
            if answer:
                messages.append({"role": "assistant", "content": answer})
            else:  # stopped before its first word: as if it had not been asked
                messages.pop()


def _read_line() -> str | None:
    """The next line of the user, stripped; None at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        if sys.stdin.isatty():
            print()
        return None
    except KeyboardInterrupt:
        print()
        raise


def _answer(engine: Engine, messages: list[Message], params: SamplingParams, method: str, budget: int | None) -> str:
    """Stream one answer to stdout and return its text; Ctrl-C ends it early and keeps what was said."""
    text = ""
    ids = encode_messages(engine, messages)
    with (
        suppress(KeyboardInterrupt),
        reading(len(ids)) as progress,
        closing(engine.stream(ids, params, method=method, budget=budget, progress=progress)) as events,
    ):
        for event in events:
            text += event.text
            sys.stdout.write(event.text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    statistics = engine.last_statistics
    if text and statistics is not None:
        speed, length = statistics.decode_tokens_per_second, statistics.acceptance_length
        note(f"[{statistics.emitted} tokens, {speed:.1f} tok/s, {length:.2f} tokens a round]")
    return text
