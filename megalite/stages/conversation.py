"""How conversations are written for a model: its tokenizer, chat template and structure."""

from dataclasses import dataclass

from megalite.data.chat.templates import Chat
from megalite.data.config import ConversationConfig, CorpusConfig, TokenizerConfig
from megalite.data.structure import AnswerBlank, Structure
from megalite.data.tokenizers.load import load_tokenizer
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig


@dataclass(frozen=True)
class ChatFormat:
    """How conversations become rows of tokens.

    Attributes:
        chat: the tokenizer and the template.
        structure: how the data of the model is laid out.
    """

    chat: Chat
    structure: Structure

    @property
    def notes(self) -> list[str]:
        """What a run should know of its tokenizer."""
        tokenizer = self.chat.tokenizer
        if tokenizer.end_id is not None:
            return []
        return [
            f"{tokenizer.path}: has no end token that is known, so answers have no end and the "
            "model does not learn to stop; tokenizer.end_token names one"
        ]


def open_chat(
    tokenizer: TokenizerConfig, data: ConversationConfig, model: ModelConfig
) -> ChatFormat:
    """The format of a run's conversations.

    Raises:
        ConfigError: the tokenizer has more tokens than the model.
        DataError: the tokenizer can't be read.
    """
    chat = Chat(data.template, load_tokenizer(tokenizer.path, tokenizer.end_token))
    check_vocabulary(chat.tokenizer, model)
    return ChatFormat(chat, structure_of(data, chat.tokenizer, model))


def structure_of(
    data: ConversationConfig | CorpusConfig, tokenizer: Tokenizer, model: ModelConfig
) -> Structure:
    """How the data of a model is laid out.

    Raises:
        DataError: the tokenizer lacks a token that ``data`` names.
    """
    blank = None
    if isinstance(data, ConversationConfig) and data.answer_mask:
        blank = AnswerBlank(
            tokenizer.token_id(data.answer_mask), tokenizer.token_id(data.answer_start)
        )
    return Structure(
        model.is_encoder_decoder,
        data.prefix,
        tokenizer.token_id(data.decoder_start) if data.decoder_start else tokenizer.pad_id,
        blank,
        model.rope_axes if model.position == "rope" else 1,
    )


def check_vocabulary(tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Refuse a tokenizer that the model has no embeddings for.

    Raises:
        ConfigError: it says which size to set.
    """
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"--model.vocab_size {model.vocab_size}: must be at least {tokenizer.vocab_size}, the "
            f"number of tokens of {tokenizer.path}"
        )
