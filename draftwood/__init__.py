"""draftwood: exact speculative decoding for local language models.

>>> from draftwood import Engine, SamplingParams
>>> engine = Engine.load(target="demo", draft="lookup")
>>> engine.generate("def fibonacci(n):", SamplingParams(max_tokens=64)).text

The names are loaded on first use, so `import draftwood` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["DraftwoodError", "Engine", "SamplingParams", "__version__"]

if TYPE_CHECKING:
    from draftwood.decode.params import SamplingParams
    from draftwood.engine.engine import Engine
    from draftwood.errors import DraftwoodError

_HOMES = {
    "Engine": "draftwood.engine.engine",
    "SamplingParams": "draftwood.decode.params",
    "DraftwoodError": "draftwood.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'draftwood' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
