"""Train a byte-level BPE tokenizer on text."""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field, model_validator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from megalite.config.section import Section
from megalite.data.corpus.documents import documents
from megalite.data.corpus.sources import FORMAT, FileFormat, SourceFile, find_sources
from megalite.distributed.launch import Launch
from megalite.errors import ConfigError, DataError


class TokenizerTrainConfig(Section):
    """What a tokenizer is trained on and how large it is."""

    source: tuple[str, ...] = Field(
        min_length=1, description="folders, text files, JSON or Parquet files"
    )
    format: FileFormat = Field("auto", description=FORMAT)
    text_key: str = Field("text", description="key of a record's text")
    output: str = Field(
        "tokenizer", min_length=1, description="new Hugging Face folder of the tokenizer"
    )
    vocab_size: int = Field(8192, ge=260, description="number of tokens, special ones included")
    max_bytes: int = Field(100_000_000, gt=0, description="most bytes of text to read")
    end_token: str = Field("<|endoftext|>", description="token of a document's end and of padding")
    special_tokens: tuple[str, ...] = Field(
        (), description="other special tokens, such as [MASK], [gMASK], <sop>, <eop>, <mask>"
    )
    sentinels: int = Field(
        0,
        ge=0,
        description="number of sentinels, <extra_id_0> and so on, down from the highest id",
    )

    @model_validator(mode="after")
    def _check(self) -> "TokenizerTrainConfig":
        if self.vocab_size - self.sentinels - len(self.special_tokens) < 258:
            raise ConfigError(
                f"--vocab_size {self.vocab_size}: must be at least 258 more than the "
                f"{self.sentinels} sentinels and {len(self.special_tokens)} special tokens"
            )
        return self


def run(config: TokenizerTrainConfig, launch: Launch) -> int:
    """Train and write a tokenizer; only rank 0 does."""
    if launch.rank != 0:
        return 0
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - config.sentinels,
        special_tokens=[config.end_token, *config.special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = find_sources(config.source, config.text_key, config.format)
    texts = _texts(config, sources.files)
    first = next(texts, None)
    if first is None:
        raise DataError(f"{', '.join(config.source)}: holds no text to train a tokenizer on")
    tokenizer.train_from_iterator(itertools.chain([first], texts), trainer)
    tokenizer.add_special_tokens([f"<extra_id_{n}>" for n in reversed(range(config.sentinels))])
    _write(tokenizer, config.end_token, Path(config.output))
    notes = sources.notes()
    if (size := tokenizer.get_vocab_size()) < config.vocab_size:
        notes = [*notes, f"--vocab_size {config.vocab_size}: the text has pairs for {size} tokens"]
    for note in notes:
        sys.stdout.write(f"{note}\n")
    return 0


def _write(tokenizer: Tokenizer, end_token: str, folder: Path) -> None:
    """Write what transformers would, whose import takes as long as learning from some MiB.

    Source: ``save_pretrained`` of transformers' ``PreTrainedTokenizerFast``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token"), end_token)
    said = json.dumps({**ends, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2)
    (folder / "tokenizer_config.json").write_text(f"{said}\n", encoding="utf-8")


def _texts(config: TokenizerTrainConfig, files: Sequence[SourceFile]) -> Iterator[str]:
    size = 0
    for piece in documents(files, config.text_key):
        yield piece.text
        size += len(piece.text.encode())
        if size >= config.max_bytes:
            return
