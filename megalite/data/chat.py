"""Chat templates: from turns to tokens, and which of them are learned."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megalite.data.example import Example, decoder_example
from megalite.data.formats import Turn
from megalite.data.own_template import NAME, OwnTemplate
from megalite.data.tokenizer import Tokenizer
from megalite.errors import ConfigError
from megalite.models.batch import IGNORE


@dataclass(frozen=True)
class Template:
    """How turns are written.

    Attributes:
        system: stands first where the conversation has no system turn of its own.
        user: around a user's text, ``{}``; ``{round}`` counts from 1.
        assistant: what an answer follows.
        separator: behind the system text.
        context: between a user's text and what it is about.
        context_system: stands for ``system`` where the first turn is about something.

    Source: PROMPT_DICT of tatsu-lab/stanford_alpaca; vicuna_v1.1 of lm-sys/FastChat; build_prompt
    of THUDM's chatglm2-6b.
    """

    user: str
    assistant: str
    system: str = ""
    separator: str = ""
    context: str = "\n"
    context_system: str = ""


TEMPLATES = {
    "plain": Template(user="{}\n", assistant=""),
    "alpaca": Template(
        system="Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.",
        separator="\n\n",
        user="### Instruction:\n{}\n\n",
        assistant="### Response:",
        context="\n\n### Input:\n",
        context_system="Below is an instruction that describes a task, paired with an input that "
        "provides further context. Write a response that appropriately completes the request.",
    ),
    "vicuna": Template(
        system="A chat between a curious user and an artificial intelligence assistant. The "
        "assistant gives helpful, detailed, and polite answers to the user's questions.",
        separator=" ",
        user="USER: {} ",
        assistant="ASSISTANT:",
    ),
    "chatglm2": Template(user="[Round {round}]\n\n问：{}\n\n", assistant="答："),
}


@dataclass(frozen=True)
class Piece:
    """Tokens of a conversation, and whether they are learned."""

    tokens: list[int]
    is_target: bool


class Chat:
    """Writes conversations as tokens by one template.

    Attributes:
        tokenizer: whose tokens they are.
    """

    def __init__(self, template: str, tokenizer: Tokenizer) -> None:
        """Choose a template by name; ``tokenizer`` is the tokenizer's own.

        Raises:
            ConfigError: there is none of this name.
        """
        names = (*TEMPLATES, NAME)
        if template not in names:
            raise ConfigError(f"template {template!r}: must be one of {', '.join(names)}")
        self.tokenizer = tokenizer
        self._template = OwnTemplate(tokenizer) if template == NAME else TEMPLATES[template]

    def _end(self) -> list[int]:
        return [] if self.tokenizer.end_id is None else [self.tokenizer.end_id]

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """A conversation as pieces; an assistant's text and its end token are targets."""
        template, encode = self._template, self.tokenizer.encode
        if isinstance(template, OwnTemplate):
            return [Piece(tokens, is_target) for tokens, is_target in template.pieces(turns)]
        begin = [] if self.tokenizer.begin_id is None else [self.tokenizer.begin_id]
        has_system = bool(turns) and turns[0].role == "system"
        system = turns[0].text if has_system else template.system
        if template.context_system and turns and turns[0].context:
            system = template.context_system
        head = encode(system + template.separator) if system else []
        pieces = [Piece(begin + head, False)]
        round_number = 0
        for turn in turns[1:] if has_system else turns:
            if turn.role == "assistant":
                pieces.append(
                    Piece(encode(template.assistant) if template.assistant else [], False)
                )
                pieces.append(Piece(encode(turn.text) + self._end(), True))
            else:
                round_number += 1
                said = turn.text + (template.context + turn.context if turn.context else "")
                text = template.user.format(said, round=round_number)
                pieces.append(Piece(encode(text), False))
        return pieces

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens an answer follows."""
        answered = self.pieces((*turns, Turn("assistant", "")))
        return [token for piece in answered[:-1] for token in piece.tokens]

    def answer(self, text: str) -> list[int]:
        """An answer's tokens with its end."""
        if isinstance(self._template, OwnTemplate):
            return self._template.answer(text)
        return self.tokenizer.encode(text) + self._end()


def conversation_example(pieces: Sequence[Piece], prefix: bool = False) -> Example:
    """A decoder's example that learns the target pieces.

    Args:
        pieces: of a conversation.
        prefix: whether the rows before the first target see each other both ways.
    """
    tokens = np.array([t for piece in pieces for t in piece.tokens], dtype=np.int64)
    targets = np.array([piece.is_target for piece in pieces for _ in piece.tokens], dtype=bool)
    labels = np.where(targets[1:], tokens[1:], IGNORE)
    first = int(targets.argmax()) if prefix else 0
    return decoder_example(tokens[:-1], labels, first)
