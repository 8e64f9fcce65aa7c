"""`draftwood run`: one prompt, one answer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftwood.cli import options
from draftwood.cli.loading import open_engine
from draftwood.cli.terminal import note
from draftwood.errors import FileError, UsageError

if TYPE_CHECKING:
    from draftwood.engine.engine import Engine


def run(
    target: options.TargetArgument,
    draft: options.DraftOption = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt.")] = None,
    prompt_ids: Annotated[
        Path | None,
        typer.Option("--prompt-ids", metavar="F", help="A file of token ids instead (raw int32, little-endian)."),
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
    temp: options.TemperatureOption = 0.0,
    seed: options.SeedOption = 0,
    chat: Annotated[
        bool,
        typer.Option("--chat/--raw", help="Put the model's chat template around the prompt, or continue it as it is."),
    ] = False,
    out_ids: Annotated[
        Path | None,
        typer.Option("--out-ids", metavar="F", help="Write prompt and answer as token ids (raw int32) to a file."),
    ] = None,
    chain_seed: Annotated[
        options.ChainSeed, typer.Option("--chain-seed", help="Share of a tree's budget for its first chain.")
    ] = options.ChainSeed.half,
    draft_block: Annotated[
        int | None,
        typer.Option(
            "--draft-block",
            callback=options.within("--draft-block", 2),
            metavar="N",
            help="Shorten the draft's blocks to N tokens.",
        ),
    ] = None,
    draft_causal: Annotated[
        options.DraftCausal | None,
        typer.Option("--draft-causal", help="Overrule which draft layers see their own block causally."),
    ] = None,
    device: options.DeviceOption = options.DeviceName.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
) -> None:
    """Answer one prompt: the text goes to stdout, the statistics to stderr."""
    from draftwood.decode.params import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temp, seed=seed)
    if (prompt is None) == (prompt_ids is None):
        raise UsageError("give one prompt, either with -p TEXT or with --prompt-ids FILE.")
    if chat and prompt is None:
        raise UsageError("--chat puts a template around text, so it needs -p TEXT and not --prompt-ids.")
    given_ids = None if prompt_ids is None else read_ids(prompt_ids)
    if out_ids is not None and not out_ids.parent.is_dir():
        raise FileError(f"no such folder for --out-ids: {out_ids.parent}; create it first.")
    engine = open_engine(
        target,
        draft,
        cache_type_k,
        cache_type_v,
        max_ctx,
        device,
        dtype,
        draft_causal=draft_causal,
        draft_block=draft_block,
    )
    ids = given_ids if given_ids is not None else encode_prompt(engine, prompt or "", chat)
    events = engine.stream(
        ids,
        params,
        method=method.value,
        budget=budget,
        chain_seed=chain_seed.value,
    )
    result = None
    try:
        for event in events:
            sys.stdout.write(event.text)
            sys.stdout.flush()
            result = event.result
    except KeyboardInterrupt:
        events.close()
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
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read token ids from {path}: {error.strerror or error}.") from error
    if not data or len(data) % 4:
        raise FileError(f"{path} holds {len(data)} bytes, but raw int32 token ids take 4 bytes each and at least one.")
    import numpy as np

    ids: list[int] = np.frombuffer(data, dtype="<i4").tolist()
    lowest = min(ids)
    if lowest < 0:
        raise FileError(f"{path} holds {lowest}, but token ids are not negative; it must be raw little-endian int32.")
    return ids


def write_ids(path: Path, ids: list[int]) -> None:
    """Write token ids as a raw int32 little-endian file, whole or not at all."""
    import numpy as np

    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(np.asarray(ids, dtype="<i4").tobytes())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FileError(f"cannot write token ids to {path}: {error.strerror or error}.") from error


def _print_statistics(engine: Engine) -> None:
    statistics = engine.last_statistics
    if statistics is None:
        return
    if statistics.reason:
        note(f"method {statistics.method}: {statistics.reason}")
    for line in statistics.summary_lines():
        note(line)
