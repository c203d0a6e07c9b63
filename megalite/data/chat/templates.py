"""Chat templates: how turns are written as tokens, and which of them are learned."""

from collections.abc import Sequence
from dataclasses import dataclass

from megalite.data.chat.own_template import NAME, OwnTemplate
from megalite.data.chat.segments import Segment
from megalite.data.chat.turns import Turn
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.errors import ConfigError


@dataclass(frozen=True)
class Template:
    """How turns are written.

    Attributes:
        user: a user's text as ``{}`` with what surrounds it; ``{round}`` counts from 1.
        assistant: written before an answer.
        system: the system text of a conversation that has none of its own.
        separator: written after the system text.
        context: written between a user's text and its context.
        context_system: replaces ``system`` where the first turn has a context.

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

    def segments(self, turns: Sequence[Turn]) -> list[Segment]:
        """A conversation as segments; an assistant's text and its end token are targets."""
        template, encode = self._template, self.tokenizer.encode
        if isinstance(template, OwnTemplate):
            return list(template.segments(turns))
        begin = [] if self.tokenizer.begin_id is None else [self.tokenizer.begin_id]
        has_system = bool(turns) and turns[0].role == "system"
        system = turns[0].text if has_system else template.system
        if template.context_system and turns and turns[0].context:
            system = template.context_system
        head = encode(system + template.separator) if system else []
        segments = [Segment(begin + head, False)]
        round_number = 0
        for turn in turns[1:] if has_system else turns:
            if turn.role == "assistant":
                lead = encode(template.assistant) if template.assistant else []
                segments.append(Segment(lead, False))
                segments.append(Segment(encode(turn.text) + self._end(), turn.is_learned))
            else:
                round_number += 1
                said = turn.text + (template.context + turn.context if turn.context else "")
                text = template.user.format(said, round=round_number)
                segments.append(Segment(encode(text), False))
        return segments

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens an answer follows."""
        answered = self.segments((*turns, Turn("assistant", "")))
        return [token for segment in answered[:-1] for token in segment.tokens]

    def answer(self, text: str) -> list[int]:
        """An answer's tokens with its end."""
        if isinstance(self._template, OwnTemplate):
            return self._template.answer(text)
        return self.tokenizer.encode(text) + self._end()
