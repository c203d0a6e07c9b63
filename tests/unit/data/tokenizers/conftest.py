"""Tokenizers of every kind, made by the libraries that read them."""

import random
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from transformers import PreTrainedTokenizerFast

from tests.unit.data.conftest import TEXTS

SYMBOLS = ["<extra_id_0>", "<mask>"]
KINDS = ("folder", "json", "unigram", "bpe", "bytes")


def lines(count: int = 300) -> list[str]:
    generator = random.Random(0)
    words = " ".join(TEXTS).split()
    return [" ".join(generator.choices(words, k=8)) for _ in range(count)]


def train_sentencepiece(folder: Path, kind: str, **options) -> Path:
    """Train a model on :func:`lines`; "bytes" has byte fallback and changes no text."""
    (folder / "text").write_text("\n".join(lines()), encoding="utf-8")
    if kind == "bytes":
        options |= {"byte_fallback": True, "normalization_rule_name": "identity"}
        options |= {"remove_extra_whitespaces": False, "vocab_size": 320}
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / kind),
        model_type="unigram" if kind == "bytes" else kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **({"vocab_size": 90, "user_defined_symbols": SYMBOLS} | options),
    )
    return folder / f"{kind}.model"


@pytest.fixture(scope="session")
def paths(tokenizer_folder, tmp_path_factory) -> dict[str, Path]:
    """A tokenizer of each kind, by its path."""
    folder = tmp_path_factory.mktemp("kinds")
    shutil.copyfile(tokenizer_folder / "tokenizer.json", folder / "tokenizer.json")
    found = {"folder": tokenizer_folder, "json": folder / "tokenizer.json"}
    return found | {kind: train_sentencepiece(folder, kind) for kind in KINDS[2:]}


@pytest.fixture(scope="session")
def with_gap(tmp_path_factory) -> dict[str, Path]:
    """Words whose ids are 0, 5 and 70,000, as a file and as a folder."""
    folder = tmp_path_factory.mktemp("gap")
    words = {"[UNK]": 0, "cat": 5, "dog.": 70_000}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.save(str(folder / "tokenizer.json"))
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]").save_pretrained(
        folder / "folder"
    )
    return {"json": folder / "tokenizer.json", "folder": folder / "folder"}
