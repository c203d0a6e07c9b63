"""How conversations are written for a model: its tokenizer, chat template and structure."""

from dataclasses import dataclass

from megalite.data.chat.chat import ANSWERS, Chat
from megalite.data.chat.templates import TEMPLATES
from megalite.data.config import (
    ConversationConfig,
    CorpusConfig,
    MixedConversationConfig,
    TokenizerConfig,
)
from megalite.data.structure import AnswerBlank, Structure
from megalite.data.tokenizers.load import load_tokenizer
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.stages.special_tokens import NOTHING_SAID, SpecialTokens


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
        if self.chat.end_ids:
            return []
        return [
            f"{tokenizer.path}: has no end token that is known, so answers have no end and the "
            "model does not learn to stop; tokenizer.end_token names one"
        ]


def open_chat(
    tokenizer: TokenizerConfig,
    data: ConversationConfig,
    model: ModelConfig,
    said: SpecialTokens = NOTHING_SAID,
) -> ChatFormat:
    """The format of a run's conversations; ``said`` is what the model's published config says.

    Raises:
        ConfigError: the tokenizer has more tokens than the model, or the template does not tell
            apart what is to be learned.
        DataError: the tokenizer can't be read.
    """
    learned = data.learned if isinstance(data, MixedConversationConfig) else ANSWERS
    chat = Chat(data.template, load_tokenizer(**tokenizer.model_dump()), learned)
    check_vocabulary(chat.tokenizer, model)
    return ChatFormat(chat, structure_of(data, chat.tokenizer, model, said))


def structure_of(
    data: ConversationConfig | CorpusConfig,
    tokenizer: Tokenizer,
    model: ModelConfig,
    said: SpecialTokens = NOTHING_SAID,
) -> Structure:
    """How the data of a model is laid out.

    The decoder of an encoder-decoder starts with the token that ``data`` names, else with the one
    that the model's published config says, else with padding.

    Raises:
        ConfigError: a decoder alone is told how its decoder starts.
        DataError: the tokenizer lacks a token that ``data`` or the template names.
    """
    if data.decoder_start and not model.is_encoder_decoder:
        raise ConfigError(
            f"--data.decoder_start {data.decoder_start}: is of an encoder-decoder, and this model "
            "has no encoder: leave it out"
        )
    start = tokenizer.pad_id if said.decoder_start is None else said.decoder_start
    if data.decoder_start:
        start = tokenizer.token_id(data.decoder_start)
    return Structure(
        model.is_encoder_decoder,
        data.prefix,
        start,
        _blank(data, tokenizer),
        model.rope_axes if model.position == "rope" else 1,
        said.forced_begin,
    )


def _blank(data: ConversationConfig | CorpusConfig, tokenizer: Tokenizer) -> AnswerBlank | None:
    """What an answer fills and starts with, as ``data`` names it, else as its template does."""
    if isinstance(data, CorpusConfig):
        return None
    tokens = None
    if data.template in TEMPLATES:
        tokens = TEMPLATES[data.template].blank
    if data.answer_mask:
        tokens = data.answer_mask, data.answer_start
    return None if tokens is None else AnswerBlank(*map(tokenizer.token_id, tokens))


def check_vocabulary(tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Refuse a tokenizer that the model has no embeddings for.

    Raises:
        ConfigError: it says which size to set.
    """
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"--model.vocab_size {model.vocab_size}: must be at least {tokenizer.vocab_size}, the "
            f"number of tokens of {tokenizer.path}; checkpoint.grow_vocabulary adds rows to a start"
        )
