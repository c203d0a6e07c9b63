"""A tokenizer's own chat template (Jinja): what it writes, and which of it is an answer."""

from collections.abc import Sequence

import jinja2

from megalite.data.chat.page import Page
from megalite.data.chat.turns import Turn
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.errors import ConfigError, DataError

NAME = "tokenizer"
QUESTION, ANSWER = Turn("user", "?"), Turn("assistant", "!")


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
        page = Page(tokenizer, tokenizer.end_id)
        self.write(page, (QUESTION, ANSWER))
        if tokenizer.end_id not in [one.token for one in page.tokens() if one.answer == 0]:
            raise ConfigError(
                f"--data.template {NAME}: an answer must end with the end token (eos_token) of "
                f"{tokenizer.path}, but its template writes another: name that one as "
                "--tokenizer.end_token"
            )

    def write(self, page: Page, turns: Sequence[Turn]) -> None:
        """Write a conversation; an answer is what its turn adds to its question.

        Raises:
            DataError: the template refuses the turns, or rewrites earlier ones.
        """
        written = ""
        for count, turn in enumerate(turns, 1):
            if turn.role == "assistant":
                question = self._render(turns[: count - 1], is_question=True)
                page.text(self._added(written, question))
                whole = self._render(turns[:count], is_question=False)
                page.answer(self._added(question, whole), ends=False)
                written = whole
            elif count == len(turns):
                page.text(self._added(written, self._render(turns, is_question=False)))

    def write_prompt(self, page: Page, turns: Sequence[Turn]) -> None:
        """Write turns up to where their answer begins.

        Raises:
            DataError: the template refuses the turns.
        """
        page.text(self._render(turns, is_question=True))

    def _render(self, turns: Sequence[Turn], is_question: bool) -> str:
        """Turns as text, up to where an answer begins if asked."""
        messages = [{"role": turn.role, "content": turn.whole} for turn in turns]
        try:
            return self._tokenizer.render(messages, is_question)
        except jinja2.TemplateError as error:
            raise DataError(
                f"{self._tokenizer.path}: its chat template refuses turns of "
                f"{', '.join(turn.role for turn in turns)}: {error}"
            ) from None

    def _added(self, before: str, after: str) -> str:
        if not after.startswith(before):
            raise DataError(
                f"{self._tokenizer.path}: its chat template rewrites earlier turns, so that "
                "conversations can't be learned turn by turn; choose a template by name"
            )
        return after[len(before) :]
