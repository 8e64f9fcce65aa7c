"""`draftwood run`: one prompt, one answer."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftwood.cli import options
from draftwood.cli.loading import open_engine
from draftwood.cli.terminal import note, reading
from draftwood.errors import FileError, UsageError
from draftwood.formats.source import shown

if TYPE_CHECKING:
    from draftwood.engine.engine import Engine

_MOST_ID_BYTES = 4 << 24
"""Ids of the longest context that the engine takes."""


def run(
    target: options.TargetArgument,
    draft: options.DraftOption = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="The text to continue or, with --chat, to answer."),
    ] = None,
    prompt_ids: Annotated[
        Path | None,
        typer.Option(
            "--prompt-ids", metavar="F", help="A file of token ids instead of a text (raw int32, little-endian)."
        ),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--n-gen",
            "-n",
            callback=options.within("--n-gen", 1),
            metavar="N",
            help="Tokens to write, at most.",
        ),
    ] = 128,
    method: options.MethodOption = options.MethodName.auto,
    budget: options.BudgetOption = None,
    max_ctx: options.ContextOption = options.DEFAULT_CONTEXT,
    cache_type_k: options.KeyTypeOption = None,
    cache_type_v: options.ValueTypeOption = None,
    draft_type_k: options.DraftKeyTypeOption = None,
    draft_type_v: options.DraftValueTypeOption = None,
    temp: options.TemperatureOption = 0.0,
    seed: options.SeedOption = 0,
    chat: Annotated[
        bool,
        typer.Option("--chat/--raw", help="chat: the model answers it, in its chat template. raw: it continues it."),
    ] = False,
    out_ids: Annotated[
        Path | None,
        typer.Option("--out-ids", metavar="F", help="Write prompt and answer as token ids (raw int32) to a file."),
    ] = None,
    chain_seed: Annotated[
        options.ChainSeed | None,
        typer.Option(
            "--chain-seed",
            help="How much of a tree's budget its first line of guesses may take: half, or full where the acceptance "
            "is assumed, if left out.",
            rich_help_panel=options.DRAFTING,
        ),
    ] = None,
    assume_acceptance: options.AssumeOption = None,
    draft_block: Annotated[
        int | None,
        typer.Option(
            "--draft-block",
            callback=options.within("--draft-block", 2),
            metavar="N",
            help="Rows of a draft model's block, one more than it guesses at a time; the draft's own if left out.",
            rich_help_panel=options.DRAFTING,
        ),
    ] = None,
    draft_causal: Annotated[
        options.DraftCausal | None,
        typer.Option(
            "--draft-causal",
            help="Which draft layers keep a guess from seeing later ones; what the draft's file says if left out.",
            rich_help_panel=options.DRAFTING,
        ),
    ] = None,
    draft_swa: options.DraftWindowOption = None,
    weights: options.WeightsOption = None,
    token_table: options.TableOption = None,
    vram: options.VramOption = None,
    device: options.DeviceOption = options.DeviceName.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.ThreadsOption = None,
) -> None:
    """Continue a text, or answer a question.

    The text goes to stdout, the statistics to stderr.
    """
    from draftwood.decode.params import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temp, seed=seed)
    if (prompt is None) == (prompt_ids is None):
        raise UsageError("give one prompt, either with -p TEXT or with --prompt-ids FILE.")
    if chat and prompt is None:
        raise UsageError("--chat puts a template around text, so it needs -p TEXT and not --prompt-ids.")
    given_ids = None if prompt_ids is None else read_ids(prompt_ids)
    if out_ids is not None:
        check_writable(out_ids)
    engine = open_engine(
        target,
        draft,
        (cache_type_k, cache_type_v),
        (draft_type_k, draft_type_v),
        max_ctx,
        device,
        dtype,
        threads=threads,
        weights=weights,
        token_table=token_table,
        vram=vram,
        draft_causal=draft_causal,
        draft_block=draft_block,
        draft_window=draft_swa,
        assume_acceptance=assume_acceptance,
    )
    if max_ctx == options.AUTO:
        facts = engine.describe()
        note(f"--max-ctx auto: room for {facts['max_context']:,} tokens, KV type {facts['kv']}")
    ids = given_ids if given_ids is not None else encode_prompt(engine, prompt or "", chat)
    result = None
    try:
        with reading(len(ids)) as progress:
            events = engine.stream(
                ids,
                params,
                method=method.value,
                budget=budget,
                chain_seed=None if chain_seed is None else chain_seed.value,
                progress=progress,
            )
            with closing(events):  # an interrupted one still says how far it came
                for event in events:
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
                    result = event.result
    except KeyboardInterrupt:
        print(flush=True)
        _print_statistics(engine)
        raise typer.Exit(130) from None
    print(flush=True)
    _print_statistics(engine)
    if out_ids is not None and result is not None:
        write_ids(out_ids, [*ids, *result.token_ids])


def encode_prompt(engine: Engine, text: str, chat: bool) -> list[int]:
    """Token ids of a raw prompt, or of a user's message in the model's chat template."""
    if not chat:
        ids: list[int] = _tokenizer(engine).encode(text, special=True, add_bos=True)
        return ids
    return encode_messages(engine, [{"role": "user", "content": text}])


def encode_messages(engine: Engine, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation in the model's chat template, with the assistant's turn opened."""
    tokenizer = _tokenizer(engine)
    template = tokenizer.chat_template
    if template is None:
        raise UsageError("this model's file has no chat template; use `draftwood run --raw` to continue a text.")
    ids: list[int] = tokenizer.encode(template.render(messages), special=True)
    return ids


def _tokenizer(engine: Engine) -> Any:
    if engine.tokenizer is None:
        raise UsageError("this model's file has no tokenizer; give the prompt as token ids with --prompt-ids.")
    return engine.tokenizer


def read_ids(path: Path) -> list[int]:
    """Token ids of a raw int32 little-endian file (SPEC-dflash 2.8)."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_ID_BYTES + 1)
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read token ids from {shown(path)}: {_cause(error)}; give another file.") from error
    if len(data) > _MOST_ID_BYTES:
        raise FileError(f"{shown(path)} holds over {_MOST_ID_BYTES // 4} token ids, more than any context; shorten it.")
    if not data or len(data) % 4:
        raise FileError(
            f"{shown(path)} holds {len(data)} bytes, but raw int32 token ids take 4 bytes each, and one is the least."
        )
    import numpy as np

    ids: list[int] = np.frombuffer(data, dtype="<i4").tolist()
    lowest = min(ids)
    if lowest < 0:
        raise FileError(
            f"{shown(path)} holds {lowest}, but token ids are not negative; it must be raw little-endian int32."
        )
    return ids


def check_writable(path: Path) -> None:
    """FileError unless token ids could be written to `path`; leaves nothing there."""
    try:
        if not path.parent.is_dir():
            raise FileError(f"no such folder for --out-ids: {shown(path.parent)}; create it first.")
        if not _is_stream(path):
            with _part_of(path):
                pass
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


def write_ids(path: Path, ids: list[int]) -> None:
    """Write token ids as a raw int32 little-endian file, whole or not at all (to a pipe or device as it comes)."""
    import numpy as np

    data = np.asarray(ids, dtype="<i4").tobytes()
    try:
        if _is_stream(path):
            path.write_bytes(data)
            return
        with _part_of(path) as part:
            part.write_bytes(data)
            os.replace(part, os.path.realpath(path))  # a link keeps pointing at the file
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """A new empty file beside the one meant, gone in the end unless it was renamed."""
    place = Path(os.path.realpath(path))
    with suppress(FileNotFoundError):
        place.stat()  # a name that no file can have is refused here
    part = place.with_name(f".draftwood-{os.getpid()}.part")
    part.touch(exist_ok=False)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _is_stream(path: Path) -> bool:
    """True for a pipe or a device, which must not be replaced by a file; a directory is an IsADirectoryError."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return path.exists() and not path.is_file()


def _unwritable(path: Path, error: Exception) -> FileError:
    return FileError(f"cannot write token ids to {shown(path)}: {_cause(error)}; name another file for --out-ids.")


def _cause(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _print_statistics(engine: Engine) -> None:
    statistics = engine.last_statistics
    if statistics is None:
        return
    if statistics.reason:
        note(f"method {statistics.method}: {statistics.reason}")
    for line in statistics.summary_lines():
        note(line)
