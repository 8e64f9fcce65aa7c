"""From what the user names to an opened model: a file, or made-up weights that need none. Torch-free."""

from __future__ import annotations

from draftwood.engine.fetch import DRAFTS, FILES, resolve
from draftwood.formats.gguf import GGUFFile
from draftwood.formats.header import ModelSource
from draftwood.models import known
from draftwood.models.draft_tensors import DraftSource, open_source
from draftwood.models.known import KnownModel
from draftwood.models.synthetic import SyntheticModel
from draftwood.text.stand_in import stand_in_tokenizer


def open_target(name: str) -> ModelSource:
    """The target of that name or path; errors as in `fetch.resolve`, `formats.gguf` and `known.header`."""
    return synthetic_model(known.header(name)) if known.is_synthetic(name) else GGUFFile.open(resolve(name))


def open_draft(name: str) -> DraftSource:
    """The draft of that name or path."""
    return synthetic_model(known.header(name)) if known.is_synthetic(name) else open_source(resolve(name, DRAFTS))


def located(name: str, table: str = FILES) -> str:
    """A name as `open_target` and `open_draft` take it without a fetch: a path, fetched if need be, or a known name.

    table: whose short names are meant, FILES or DRAFTS.
    """
    return str(known.header(name).path) if known.is_synthetic(name) else str(resolve(name, table))


def synthetic_model(model: KnownModel) -> SyntheticModel:
    """Made-up weights with a stand-in tokenizer; a draft has its target's."""
    return SyntheticModel(model, stand_in_tokenizer(model.vocab))
