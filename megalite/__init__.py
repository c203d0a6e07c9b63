"""megalite: train encoder-decoders, causal decoders and prefix decoders at any scale.

The names of ``megalite.__all__`` are imported when they are first used; docs/python.md shows them.
"""

import importlib

__version__ = "0.1.0"

_CALLS = (
    "LoadedModel",
    "convert",
    "evaluate",
    "generate",
    "load_model",
    "load_tokenizer",
    "prepare_data",
    "train",
    "train_tokenizer",
)
_OPERATORS = (
    "AttentionOptions",
    "RowIntervals",
    "attention",
    "cross_entropy",
    "linear_cross_entropy",
    "norm",
    "rope",
    "rope_tables",
)
_PLACES = {name: "megalite.tools.calls" for name in _CALLS}
_PLACES |= {name: "megalite.ops" for name in _OPERATORS}
_PLACES |= {"Launch": "megalite.distributed.launch", "MegaliteError": "megalite.errors"}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> object:
    """Import a name where it is used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Names that are there, imported or not."""
    return sorted({*globals(), *__all__})
