"""A small byte-level tokenizer, made by the command itself."""

import json
from pathlib import Path

import pytest

from megalite.cli import main
from megalite.data.records import Records
from megalite.data.tokenizers.load import load_tokenizer

TEXTS = ["the red cat sees the blue dog", "one two three", "猫 und Hund: naïve café ☕"]


def write_jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_records(paths, parse) -> list:
    return [parsed for _, parsed in Records(paths, parse)]


def command(*words) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    source = write_jsonl(folder / "texts.jsonl", [{"text": text} for text in TEXTS * 5])
    words = ["tokenizer", "train", "--source", f'["{source}"]', "--vocab_size", "300"]
    assert command(*words, "--output", folder / "own") == 0
    return folder / "own"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)
