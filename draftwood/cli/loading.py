"""From the user's flags to a loaded engine; what is wrong with them is said before the model is read."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from draftwood.cli.options import AUTO, DEFAULT_CONTEXT
from draftwood.cli.terminal import note, waiting

if TYPE_CHECKING:
    from draftwood.engine.engine import Engine

KVFlags = tuple[str | None, str | None]
"""The flags for the types of K and V."""


def open_engine(
    target: str,
    draft: str | None = None,
    kv: KVFlags = (None, None),
    draft_kv: KVFlags = (None, None),
    max_context: int | str = DEFAULT_CONTEXT,
    device: str = "auto",
    dtype: str = "auto",
    spinner: bool = True,
    again: bool = False,
    **others: str | float | None,
) -> Engine:
    """Fetch what is named and not here, then load it; `others` are fields of `EngineConfig`.

    A setting that is None is left to the engine. max_context: a number of tokens, or "auto". `spinner` is for callers
    that draw nothing on stderr themselves. `again` is for all but the first engine of a command: what is true
    of its target was said with that one.
    """
    settings = {"kv": kv_name(*kv), "draft_kv": kv_name(*draft_kv), **others}
    from draftwood.engine.sources import located

    target = located(target)
    draft_name = None if draft is None else draft_located(draft)
    with waiting(f"loading {Path(target).name}") if spinner else nullcontext() as progress:
        from draftwood.engine.engine import Engine

        engine = Engine.load(
            target=target,
            draft=draft_name,
            progress=progress,
            max_context=max_context if max_context == AUTO else int(max_context),
            device=device,
            dtype=dtype,
            **{name: value for name, value in settings.items() if value is not None},
        )
    if engine.memory is not None:
        note(engine.memory.summary())
    if engine.synthetic and not again:
        note(f"{Path(target).name} is synthetic: its weights are random, and what it writes means nothing")
    return engine


def kv_name(key_type: str | None, value_type: str | None) -> str | None:
    """The two flags as the engine writes them, each type checked; one flag alone names both types, none no type."""
    from draftwood.cache.registry import kv_spec

    key = key_type if key_type is not None else value_type
    value = value_type if value_type is not None else key_type
    if key is None or value is None:
        return None
    return f"{kv_spec(key).name}/{kv_spec(value).name}"


def draft_located(draft: str) -> str:
    """The name of a drafter that needs no file, or what `open_draft` takes, fetched if need be."""
    from draftwood.decode.drafters.registry import named_drafter
    from draftwood.engine.fetch import DRAFTS
    from draftwood.engine.sources import located

    return draft if named_drafter(draft) is not None else located(draft, DRAFTS)


def draft_for(target: str, draft: str | None) -> str:
    """The draft that was asked for, or else what drafts for the target: its own if one is shipped, or look-up."""
    from draftwood.engine.fetch import default_draft

    return default_draft(target) if draft is None else draft
