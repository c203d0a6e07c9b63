"""Where samples come from, as the config of a run says."""

from typing import Literal

from pydantic import Field, model_validator

from megalite.config.section import Section
from megalite.data.objectives.blank_infilling import BlankInfillingConfig
from megalite.data.objectives.denoising import DenoisingConfig
from megalite.data.objectives.mixture import MixtureConfig
from megalite.data.objectives.prefix_lm import PrefixLMConfig
from megalite.data.objectives.span_corruption import SpanCorruptionConfig
from megalite.errors import ConfigError


class TokenizerConfig(Section):
    """The tokenizer of a run."""

    path: str = Field(
        "tokenizer", description="a Hugging Face folder, tokenizer.json or SentencePiece .model"
    )


class CorpusConfig(Section):
    """Token stores for pretraining."""

    train: tuple[str, ...] = Field((), description="stores, without .bin and .idx")
    weights: tuple[float, ...] = Field((), description="share of each store; empty: by size")
    heldout: tuple[str, ...] = Field((), description="stores for evaluation")
    sequence_length: int = Field(1024, ge=2, description="tokens of a row, S")
    separate_documents: bool = Field(True, description="a token sees its own document only")
    objective: Literal[
        "next_token",
        "prefix_lm",
        "span_corruption",
        "denoising",
        "blank_infilling",
        "ul2",
        "u_palm",
    ] = Field("next_token", description="what of a document is read and what is learned")
    encoder_length: int = Field(0, ge=0, description="rows of an encoder, Se; 0: sequence_length")
    prefix: bool = Field(
        True, description="rows of a source see each other both ways in a decoder alone"
    )
    decoder_start: str = Field(
        "", description="an encoder-decoder's first decoder token; empty: the padding token"
    )
    prefix_lm: PrefixLMConfig = PrefixLMConfig()
    span_corruption: SpanCorruptionConfig = SpanCorruptionConfig()
    denoising: DenoisingConfig = DenoisingConfig()
    blank_infilling: BlankInfillingConfig = BlankInfillingConfig()
    mixture: MixtureConfig = MixtureConfig()

    @model_validator(mode="after")
    def _check(self) -> "CorpusConfig":
        if self.weights and len(self.weights) != len(self.train):
            raise ConfigError(
                f"--data.weights: must be one for each of the {len(self.train)} stores, "
                f"came {len(self.weights)}"
            )
        if any(weight <= 0 for weight in self.weights):
            raise ConfigError(f"--data.weights {list(self.weights)}: must be positive")
        return self

    @property
    def encoder_rows(self) -> int:
        """Rows of an encoder, Se."""
        return self.encoder_length or self.sequence_length


class ConversationConfig(Section):
    """Files of conversations, rankings or prompts."""

    train: tuple[str, ...] = Field((), description="JSONL, JSON or Parquet files")
    heldout: tuple[str, ...] = Field((), description="files for evaluation")
    template: Literal["plain", "alpaca", "vicuna", "chatglm2", "tokenizer"] = Field(
        "plain", description="how a conversation is written; tokenizer: by its own chat template"
    )
    sequence_length: int = Field(512, ge=2, description="most tokens of a row, S")
    packed: bool = Field(True, description="several short conversations share a row (SFT)")
    prefix: bool = Field(False, description="rows of a prompt see each other both ways")
    decoder_start: str = Field(
        "", description="an encoder-decoder's first decoder token; empty: the padding token"
    )
    answer_mask: str = Field(
        "", description="GLM: stands behind a prompt for the answer, such as [gMASK]"
    )
    answer_start: str = Field("", description="GLM: an answer's first token, such as <sop>")

    @model_validator(mode="after")
    def _check(self) -> "ConversationConfig":
        if bool(self.answer_mask) != bool(self.answer_start):
            raise ConfigError(
                f"--data.answer_mask {self.answer_mask!r}: must be given together with "
                f"data.answer_start, came {self.answer_start!r}"
            )
        return self
