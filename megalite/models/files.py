"""Which files a published model and its tokenizer lie in, told by their names; needs no library."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from megalite.errors import CheckpointError, first_line

Wanted = Literal["config", "tokenizer", "model"]  # a model is all three
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # or parts of one, and an index of them
WEIGHT_ENDS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")
TOKENIZER_FILES = (  # beginnings of the names of a tokenizer's files
    "tokenizer",
    "tokenization_",
    "special_tokens",
    "vocab",
    "merges",
    "added_tokens",
    "chat_template",
    "spiece",
    "sentencepiece",
    "ice_text",
)
TEMPLATES = "additional_chat_templates"  # a folder of those beside the default one
ENDS = (".model", ".jinja", ".tiktoken", ".py")  # of a tokenizer's further files


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's files."""
    names = (file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else ()
    return any(name.startswith(TOKENIZER_FILES) for name in names)


def weight_files(names: Iterable[str]) -> list[str]:
    """Which of a published model's files hold the weights, as ``TensorFiles`` finds them."""
    names = list(names)
    for whole in WEIGHTS:
        stem, _, end = whole.partition(".")
        if f"{whole}.index.json" in names:
            parts = [n for n in names if n.startswith(f"{stem}-") and n.endswith(f".{end}")]
            return [f"{whole}.index.json", *parts]
        if whole in names:
            return [whole]
    return []


def parts_of(files: Iterable[str]) -> dict[str, list[str]]:
    """Files by the part of the model that they are of: config, weights, tokenizer."""
    files = list(files)
    tokenizer = [f for f in files if f.startswith(TOKENIZER_FILES) or f.endswith(ENDS)]
    return {
        "config": [f for f in files if f in ("config.json", "generation_config.json")],
        "weights": weight_files(files),
        "tokenizer": [f for f in tokenizer if "/" not in f or f.startswith(f"{TEMPLATES}/")],
    }


def chosen(parts: dict[str, list[str]], wanted: Wanted) -> list[str]:
    """The files of what is wanted; a tokenizer's class may be told by the model's config."""
    if wanted == "model":
        return list(dict.fromkeys(name for names in parts.values() for name in names))
    config = parts["config"] if wanted == "tokenizer" else []
    return list(dict.fromkeys(parts[wanted] + config))


def has_weights(path: Path) -> bool:
    """Whether a folder has weights, all parts of them; none of them is opened."""
    for whole in WEIGHTS:
        index = path / f"{whole}.index.json"
        if index.is_file():
            return all(file.is_file() for file in set(indexed(index).values()))
        if (path / whole).is_file():
            return True
    return False


def indexed(index: Path) -> dict[str, Path]:
    """The file of each tensor, by its name.

    Raises:
        CheckpointError: the index can't be read.
    """
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: index.parent / file for name, file in names.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: can't be read: {first_line(error)}") from None
