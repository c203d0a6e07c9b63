"""Config sections of tokenizers and data."""

import os
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from megalite.config.amount import Amount
from megalite.config.section import Section
from megalite.data.chat.long_rows import LongRows, RowRules
from megalite.data.chat.turns import KNOWN
from megalite.data.hub_rows import is_hub_rows
from megalite.data.objectives.blank_infilling import BlankInfillingConfig
from megalite.data.objectives.denoising import DenoisingConfig
from megalite.data.objectives.mixture import MixtureConfig
from megalite.data.objectives.prefix_lm import PrefixLMConfig
from megalite.data.objectives.span_corruption import SpanCorruptionConfig
from megalite.errors import ConfigError
from megalite.files.urls import cache, check_no_url

TemplateName = Literal[
    "raw",
    "plain",
    "alpaca",
    "vicuna",
    "chatglm",
    "chatglm2",
    "llama2",
    "llama3",
    "mistral",
    "moss",
    "baichuan",
    "baichuan2",
    "chatml",
    "zephyr",
    "lima",
    "tokenizer",
]
TEMPLATE = (
    "format of a conversation; raw: nothing around a text; plain: a line for each question; "
    "tokenizer: the tokenizer's own chat template; alpaca, vicuna, chatglm, chatglm2, llama2, "
    "llama3, mistral, moss, baichuan, baichuan2, chatml, zephyr, lima: as these models were trained"
)
DECODER_START = (
    "first token of an encoder-decoder's decoder; empty: as the config says that the model comes "
    "with, else the padding token"
)

COLUMNS = (
    "the files' names of keys by the names that are known here, such as "
    '{ instruction = "question", output = "answer" }'
)


LearnedRole = Literal["system", "user", "thoughts", "commands", "results", "assistant", "marks"]
OFF, AUTO = ("", "off"), "auto"  # values of data.cache

ObjectiveName = Literal[
    "next_token",
    "prefix_lm",
    "span_corruption",
    "denoising",
    "blank_infilling",
    "ul2",
    "u_palm",
]


class TokenizerConfig(Section):
    """The tokenizer of a run."""

    path: str = Field(
        "tokenizer",
        description="Hugging Face folder or name, tokenizer.json or SentencePiece .model; not "
        "given: that of checkpoint.start or of its run",
    )
    end_token: str = Field(
        "", description="token that ends a document or an answer; empty: as the files say"
    )
    trust_code: bool = Field(False, description="Python code in the tokenizer's folder may run")


class CorpusConfig(Section):
    """Token stores for pretraining."""

    train: tuple[str, ...] = Field(
        (),
        description="token stores to learn, without .bin and .idx, folders of them, or patterns "
        "such as stores/*",
    )
    weights: tuple[float, ...] = Field(
        (), description="share of each store in the samples; empty: in proportion to its samples"
    )
    weights_at: dict[str, tuple[float, ...]] = Field(
        {},
        description="weights from later places of the run on, such as { '90%' = [1.0, 0.0, 3.0], "
        "'1T tokens' = [1.0, 1.0, 1.0] }; 0: nothing of a store",
    )
    size_limit: int = Field(
        0,
        ge=0,
        description="samples that a store counts as at most where weights are empty, and so by "
        "size (T5's and Flan's mixtures); 0: all that it has",
    )
    heldout: tuple[str, ...] = Field((), description="token stores for evaluation")
    validation: dict[str, tuple[str, ...]] = Field(
        {},
        description='further held-out data by names, such as { code = ["code.jsonl"] }: each has '
        "its own curve, heldout_loss/code",
    )
    split: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the samples of train that is held out for evaluation instead of "
        "data.heldout, chosen by the seed and a sample's number; 0: none",
    )
    sequence_length: int = Field(1024, ge=2, description="tokens of a sequence, S")
    separate_documents: bool = Field(
        True, description="attention of each token to its own document only"
    )
    objective: ObjectiveName = Field(
        "next_token",
        description="what is learned of a document; next_token: each next token of the text; "
        "prefix_lm: what follows a prefix; span_corruption: spans replaced by sentinels (T5); "
        "denoising: the document from a noised one (BART); blank_infilling: masked spans in random "
        "order (GLM); ul2, u_palm: mixtures of span_corruption and prefix_lm",
    )
    objectives: tuple[ObjectiveName, ...] = Field(
        (),
        description="objective of each store of train, in their order, where they differ (GLM-130B "
        "has blank_infilling of text, prefix_lm of prompted tasks); what is held out from "
        "elsewhere has objective; empty: objective for all",
    )
    encoder_length: int = Field(
        0, ge=0, description="tokens of an encoder's sequence, Se; 0: sequence_length"
    )
    prefix: bool = Field(
        True, description="attention both ways between a source's tokens in a decoder alone"
    )
    decoder_start: str = Field("", description=DECODER_START)
    prefix_lm: PrefixLMConfig = PrefixLMConfig()
    span_corruption: SpanCorruptionConfig = SpanCorruptionConfig()
    denoising: DenoisingConfig = DenoisingConfig()
    blank_infilling: BlankInfillingConfig = BlankInfillingConfig()
    mixture: MixtureConfig = MixtureConfig()

    @model_validator(mode="after")
    def _check(self) -> "CorpusConfig":
        check_heldout(self.heldout, self.validation, self.split)
        if any(weight <= 0 for weight in self.weights):
            raise ConfigError(f"--data.weights {list(self.weights)}: must be positive")
        for place, weights in self.weights_at.items():
            try:
                Amount.read(place)
            except ValueError as error:
                raise ConfigError(f"--data.weights_at: {error}") from None
            if min(weights, default=-1.0) < 0 or not sum(weights):
                raise ConfigError(
                    f"--data.weights_at {place!r} {list(weights)}: must be a weight for each "
                    "store, none negative and some positive"
                )
        if self.weights and self.objectives and len(self.weights) != len(self.objectives):
            raise ConfigError(
                f"--data.objectives: must be one for each store, as data.weights is, which has "
                f"{len(self.weights)}, came {len(self.objectives)}"
            )
        if self.weights and self.size_limit:
            raise ConfigError(
                f"--data.size_limit {self.size_limit}: is for weights by size, and data.weights "
                "says others: give one of them"
            )
        return self

    @property
    def objective_names(self) -> tuple[str, ...]:
        """The objectives of the stores, each once."""
        return tuple(dict.fromkeys(self.objectives or (self.objective,)))

    @property
    def encoder_rows(self) -> int:
        """Rows of an encoder's sequence, Se."""
        return self.encoder_length or self.sequence_length


class ConversationConfig(Section):
    """Files of conversations, rankings or prompts."""

    train: tuple[str, ...] = Field(
        (),
        description="JSONL, JSON or Parquet files to learn, folders of them, or patterns such as "
        "rows/*.jsonl",
    )
    heldout: tuple[str, ...] = Field((), description="the same for evaluation")
    validation: dict[str, tuple[str, ...]] = Field(
        {},
        description='further held-out data by names, such as { code = ["code.jsonl"] }: each has '
        "its own curve, heldout_loss/code",
    )
    split: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the samples of train that is held out for evaluation instead of "
        "data.heldout, chosen by the seed and a sample's number; 0: none",
    )
    columns: dict[str, str] = Field({}, description=COLUMNS)
    long_rows: LongRows = Field(
        "refuse",
        description="what becomes of a record that is longer than sequence_length; refuse: an "
        "error that counts them; drop: left out; truncate: its end is cut off (sft); split: into "
        "conversations of as many rounds as fit (sft); shorten: to the first rounds that fit (sft)",
    )
    template: TemplateName = Field("plain", description=TEMPLATE)
    sequence_length: int = Field(512, ge=2, description="most tokens of a sequence, S")
    packed: bool = Field(True, description="several short conversations in one sequence (SFT)")
    prefix: bool = Field(False, description="attention both ways between a prompt's tokens")
    decoder_start: str = Field("", description=DECODER_START)
    answer_mask: str = Field(
        "", description="mask after a prompt that the answer fills, such as [gMASK] (GLM)"
    )
    answer_start: str = Field("", description="first token of an answer, such as <sop> (GLM)")

    @model_validator(mode="after")
    def _check(self) -> "ConversationConfig":
        check_heldout(self.heldout, self.validation, self.split)
        if bool(self.answer_mask) != bool(self.answer_start):
            raise ConfigError(
                f"--data.answer_mask {self.answer_mask!r}: must be given together with "
                f"data.answer_start, came {self.answer_start!r}"
            )
        for ours in self.columns:
            if ours not in KNOWN:
                raise ConfigError(
                    f"--data.columns {ours!r}: must be a name that is known here, with the file's "
                    f'name as its value ({{ instruction = "question" }}): {", ".join(KNOWN)}'
                )
        return self

    @property
    def rules(self) -> RowRules:
        """How records are read."""
        return RowRules(self.sequence_length, self.long_rows, self.columns)


class StoredConversationConfig(ConversationConfig):
    """Files of conversations or rankings whose tokens are kept for later starts."""

    cache: str = Field(
        AUTO,
        description="folder where rows are kept once they are tokenized, for all processes and "
        "later starts; auto: megalite/rows in $XDG_CACHE_HOME, or in ~/.cache; off: each process "
        "tokenizes them at each start",
    )

    @field_validator("cache")
    @classmethod
    def _is_here(cls, cache: str) -> str:
        check_no_url("data.cache", cache)
        return cache

    @property
    def rows_folder(self) -> Path | None:
        """Where rows are kept; None: nowhere."""
        if self.cache == AUTO:
            return cache() / "rows"
        return None if self.cache in OFF else Path(os.path.expanduser(self.cache))

    @property
    def keeps_all(self) -> bool:
        """Whether all rows are kept, those of files alone."""
        named = (self.train, self.heldout, *self.validation.values())
        return self.cache not in OFF and not any(map(is_hub_rows, chain(*named)))


class MixedConversationConfig(StoredConversationConfig):
    """Files of conversations in shares of their own, and what is learned of them."""

    learned: tuple[LearnedRole, ...] = Field(
        ("assistant",),
        description="roles whose texts are learned, where the template tells them apart (moss): "
        "system, user, thoughts, commands, results, assistant (with its end), or marks: what the "
        "template itself writes around texts",
    )

    weights: tuple[float, ...] = Field(
        (),
        description="share of each entry of train (a file, or a folder or pattern of several, "
        "which have theirs by size) in the conversations; empty: all by size",
    )
    size_limits: tuple[int, ...] = Field(
        (),
        description="conversations that a file of each entry of train counts as at most in shares "
        "by size (Flan: 30000, 20000, ...); 0: all that it has; empty: for every entry",
    )

    @model_validator(mode="after")
    def _check_learned(self) -> "MixedConversationConfig":
        if not self.learned:
            raise ConfigError("--data.learned []: must name a role that is learned, or be left out")
        return self

    @model_validator(mode="after")
    def _check_shares(self) -> "MixedConversationConfig":
        if any(weight <= 0 for weight in self.weights):
            raise ConfigError(f"--data.weights {list(self.weights)}: must be positive")
        if any(limit < 0 for limit in self.size_limits):
            raise ConfigError(f"--data.size_limits {list(self.size_limits)}: must not be negative")
        for key, told in (("weights", self.weights), ("size_limits", self.size_limits)):
            if told and self.train and len(told) != len(self.train):
                raise ConfigError(
                    f"--data.{key}: must be one for each of the {len(self.train)} entries of "
                    f"data.train, came {len(told)}"
                )
        if self.is_mixed and self.split:
            raise ConfigError(
                f"--data.split {self.split:g}: counts records through all files, and a mixture "
                "reads each by itself: give data.heldout, or no data.weights and data.size_limits"
            )
        return self

    @property
    def is_mixed(self) -> bool:
        """Whether shares are others than by size."""
        return bool(self.weights or any(self.size_limits))


def check_heldout(
    heldout: Sequence[str], validation: Mapping[str, Sequence[str]], split: float
) -> None:
    """Refuse two kinds of held-out samples without a name, and names that no metric can have.

    Raises:
        ConfigError: it names the key.
    """
    if heldout and split:
        raise ConfigError(
            f"--data.split {split:g}: holds out samples of data.train, and data.heldout names "
            "others: give one of them, and further sets by data.validation"
        )
    for name, files in validation.items():
        if not re.fullmatch(r"[\w-]+", name) or not files:
            raise ConfigError(
                f"--data.validation {name!r}: must be a name of letters, digits, _ and -, with at "
                'least one file ({ code = ["code.jsonl"] })'
            )
