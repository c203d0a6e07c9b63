"""A tokenizer's own chat template (Jinja): what it writes, and which of it is an answer."""

from collections.abc import Sequence
from dataclasses import replace
from os.path import commonprefix

import jinja2

from megalite.data.chat.page import ANSWER, Page
from megalite.data.chat.turns import Turn
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.errors import ConfigError, DataError

NAME = "tokenizer"
ROUND = (Turn("user", "one question"), Turn(ANSWER, "one answer"))
MARK = "\ue000"  # a character that no template writes


class OwnTemplate:
    """Writes conversations by the tokenizer's own template, whole, as transformers does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take a tokenizer's template.

        Raises:
            ConfigError: it has none, or one that writes no texts or whose answers do not end with
                the end token.
        """
        self._tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise ConfigError(
                f"--data.template {NAME}: {tokenizer.path} has no chat template; choose a "
                "template by name, or a tokenizer that has one"
            )
        written = self._render(ROUND, is_question=False)
        if not all(turn.text in written for turn in ROUND):
            raise ConfigError(
                f"--data.template {NAME}: the chat template of {tokenizer.path} doesn't write a "
                "message whose content is text; choose a template by name"
            )
        page = Page(tokenizer, tokenizer.end_id)
        self.write(page, ROUND)
        if tokenizer.end_id not in [one.token for one in page.tokens() if one.answer == 0]:
            raise ConfigError(
                f"--data.template {NAME}: an answer must end with the end token (eos_token) of "
                f"{tokenizer.path}, but its template writes another: name that one as "
                "--tokenizer.end_token"
            )

    def write(self, page: Page, turns: Sequence[Turn]) -> None:
        """Write a conversation; an answer is what stands behind the prompt that asks for it.

        Raises:
            DataError: the template refuses the turns, or asks otherwise than it writes.
        """
        whole, at = self._render(turns, is_question=False), 0
        for number, turn in enumerate(turns):
            if turn.role == ANSWER:
                first = self._beginning(turns, number, whole)
                last = self._end(turns, number, whole)
                if last < first:
                    raise self._rewrites()
                page.text(whole[at:first])
                page.answer(whole[first:last], ends=False)
                at = last
        page.text(whole[at:])

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
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"{self._tokenizer.path}: its chat template refuses turns of "
                f"{', '.join(turn.role for turn in turns)}: {error}"
            ) from None

    def _beginning(self, turns: Sequence[Turn], number: int, whole: str) -> int:
        """Where an answer begins in a conversation."""
        if not number:  # there is nothing that asks for it
            return self._differs(turns, number, MARK + turns[number].text, whole)
        question = self._render(turns[:number], is_question=True)
        if not whole.startswith(question):
            raise self._rewrites()
        return len(question)

    def _end(self, turns: Sequence[Turn], number: int, whole: str) -> int:
        """Where an answer ends in a conversation: with what is behind it wherever it stands."""
        turns_so_far = turns[: number + 1]
        alone = self._render(turns_so_far, is_question=False)
        if whole.startswith(alone):
            return len(alone)
        marked = turns[number].text + MARK
        last = self._differs(turns, number, marked, whole)
        last_alone = self._differs(turns_so_far, number, marked, alone)
        return last + len(commonprefix([whole[last:], alone[last_alone:]]))

    def _differs(self, turns: Sequence[Turn], number: int, text: str, whole: str) -> int:
        """The first character of a conversation that is another with this text of a turn."""
        others = [*turns[:number], replace(turns[number], text=text), *turns[number + 1 :]]
        return len(commonprefix([whole, self._render(others, is_question=False)]))

    def _rewrites(self) -> DataError:
        return DataError(
            f"{self._tokenizer.path}: its chat template rewrites earlier turns, or asks for an "
            "answer otherwise than it writes one, so that what is learned wouldn't be what is "
            "asked for; choose a template by name"
        )
