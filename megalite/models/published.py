"""Which files of a published model are read, by their names."""

from collections.abc import Iterable
from typing import Literal

from megalite.models.files import TOKENIZER_FILES, weight_files

Wanted = Literal["config", "tokenizer", "model"]  # a model is all three
ENDS = (".model", ".jinja", ".tiktoken", ".py")  # of a tokenizer's further files


def parts_of(files: Iterable[str]) -> dict[str, list[str]]:
    """Files by the part of the model that they are of: config, weights, tokenizer."""
    files = list(files)
    tokenizer = [f for f in files if f.startswith(TOKENIZER_FILES) or f.endswith(ENDS)]
    return {
        "config": [f for f in files if f in ("config.json", "generation_config.json")],
        "weights": weight_files(files),
        "tokenizer": [file for file in tokenizer if "/" not in file],
    }


def chosen(parts: dict[str, list[str]], wanted: Wanted) -> list[str]:
    """The files of what is wanted; a tokenizer's class may be told by the model's config."""
    if wanted == "model":
        return list(dict.fromkeys(name for names in parts.values() for name in names))
    config = parts["config"] if wanted == "tokenizer" else []
    return list(dict.fromkeys(parts[wanted] + config))
