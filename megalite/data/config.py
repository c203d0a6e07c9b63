"""Where samples come from, as the config of a run says."""

from typing import Literal

from pydantic import Field, model_validator

from megalite.config.section import Section
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


class ConversationConfig(Section):
    """Files of conversations, rankings or prompts."""

    train: tuple[str, ...] = Field((), description="JSONL, JSON or Parquet files")
    heldout: tuple[str, ...] = Field((), description="files for evaluation")
    template: Literal["plain", "alpaca", "vicuna", "chatglm2"] = Field(
        "plain", description="how a conversation is written"
    )
    sequence_length: int = Field(512, ge=2, description="most tokens of a row, S")
    packed: bool = Field(True, description="several short conversations share a row (SFT)")
    prefix: bool = Field(False, description="rows of a prompt see each other both ways")
    decoder_start: str = Field(
        "", description="an encoder-decoder's first decoder token; empty: the padding token"
    )
