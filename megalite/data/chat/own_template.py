"""A tokenizer's own chat template (Jinja): what it writes, and which of it is learned."""

from collections.abc import Iterator, Sequence

import jinja2

from megalite.data.chat.segments import Segment
from megalite.data.chat.turns import Turn
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.errors import ConfigError, DataError

NAME = "tokenizer"
QUESTION = Turn("user", "?")


class OwnTemplate:
    """Writes conversations by the tokenizer's own template.

    What a turn adds is the difference between two renderings, with it and without it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take a tokenizer's template.

        Raises:
            ConfigError: it has none, or one whose answers do not end with the end token.
        """
        self._tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise ConfigError(
                f"--data.template {NAME}: {tokenizer.path} has no chat template; choose a "
                "template by name, or a tokenizer that has one"
            )
        if tokenizer.end_id not in self.answer("!"):
            raise ConfigError(
                f"--data.template {NAME}: an answer must end with the end token (eos_token) of "
                f"{tokenizer.path}, but its template writes another: set eos_token to that one"
            )

    def segments(self, turns: Sequence[Turn]) -> Iterator[Segment]:
        """A conversation as segments; an answer, its end included, is a target.

        Raises:
            DataError: the template refuses the turns, or rewrites earlier ones.
        """
        written = ""
        for count, turn in enumerate(turns, 1):
            if turn.role == "assistant":
                question = self._render(turns[: count - 1], is_question=True)
                yield Segment(self._added(written, question), False)
                written = question
            if turn.role == "assistant" or count == len(turns):
                whole = self._render(turns[:count], is_question=False)
                is_target = turn.role == "assistant" and turn.is_learned
                yield Segment(self._added(written, whole), is_target)
                written = whole

    def answer(self, text: str) -> list[int]:
        """An answer's tokens with its end."""
        return list(self.segments((QUESTION, Turn("assistant", text))))[-1].tokens

    def _render(self, turns: Sequence[Turn], is_question: bool) -> str:
        messages = [{"role": turn.role, "content": turn.whole} for turn in turns]
        try:
            return self._tokenizer.render(messages, is_question)
        except jinja2.TemplateError as error:
            raise DataError(
                f"{self._tokenizer.path}: its chat template refuses turns of "
                f"{', '.join(turn.role for turn in turns)}: {error}"
            ) from None

    def _added(self, before: str, after: str) -> list[int]:
        if not after.startswith(before):
            raise DataError(
                f"{self._tokenizer.path}: its chat template rewrites earlier turns, so that "
                "conversations can't be learned turn by turn; choose a template by name"
            )
        return self._tokenizer.encode(after[len(before) :])
