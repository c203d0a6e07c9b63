"""Conversations and rankings as a model of some structure reads them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megalite.data.chat.chat import Chat, Conversation, last_answer
from megalite.data.chat.turns import Turn
from megalite.data.example import Example, decoder_example
from megalite.data.layout import as_prompt, paired_example, scored_example
from megalite.data.structure import Structure
from megalite.errors import DataError
from megalite.generation.prompts import Prompt
from megalite.models.batch import IGNORE


def reads_all(structure: Structure) -> bool:
    """Whether the decoder reads a whole conversation; all its answers are learned then."""
    return not structure.is_encoder_decoder and structure.blank is None


def learned_example(chat: Chat, structure: Structure, turns: Sequence[Turn]) -> Example:
    """A conversation to learn.

    All answers are learned where the decoder reads the whole conversation, else the last.

    Raises:
        DataError: the template can't write these turns.
    """
    if reads_all(structure):
        return conversation_example(chat.conversation(turns), structure.is_prefix)
    last = last_answer(turns)
    example = paired_example(*_pair(chat, structure, turns[:last], turns[last].text), structure)
    is_learned = turns[last].is_learned
    return example if is_learned else replace(example, labels=example.labels * 0 + IGNORE)


def conversation_example(conversation: Conversation, prefix: bool = False) -> Example:
    """A decoder's example that learns the targets.

    Args:
        conversation: tokens and targets.
        prefix: whether the rows before the first target see each other both ways.
    """
    tokens, targets = conversation.tokens, conversation.targets
    first = int((targets != IGNORE).argmax()) if prefix else 0
    return decoder_example(tokens[:-1], targets[1:], first)


def answer_example(chat: Chat, structure: Structure, turns: Sequence[Turn], text: str) -> Example:
    """An answer to be scored after its prompt; its end token is the last row.

    Raises:
        DataError: the template can't write these turns.
    """
    return scored_example(*_pair(chat, structure, turns, text), structure)


def preferred_example(
    chat: Chat, structure: Structure, turns: Sequence[Turn], text: str
) -> Example:
    """An answer of which each token is a target, after its prompt.

    Raises:
        DataError: the template can't write these turns, or the answer has no tokens.
    """
    source, target = _pair(chat, structure, turns, text)
    if not len(target) or not (len(source) or structure.is_encoder_decoder or len(target) > 1):
        raise DataError("an answer has no tokens that could be learned: leave the record out")
    return paired_example(source, target, structure)


def prompt_of(chat: Chat, structure: Structure, turns: Sequence[Turn]) -> Prompt:
    """What an answer to some turns starts from.

    Raises:
        DataError: the template can't write these turns.
    """
    is_pair = structure.is_encoder_decoder
    return as_prompt(chat.source(turns) if is_pair else chat.prompt(turns), structure)


def _pair(
    chat: Chat, structure: Structure, turns: Sequence[Turn], text: str
) -> tuple[np.ndarray, np.ndarray]:
    """A prompt and its answer, each int64."""
    if structure.is_encoder_decoder:
        pair = chat.source(turns), chat.target(text)
    elif structure.blank is not None:
        pair = chat.prompt(turns), chat.alone(text)
    else:
        pair = chat.answered(turns, text)
    return np.array(pair[0], dtype=np.int64), np.array(pair[1], dtype=np.int64)
