"""Conversations as tokens by one template: what a model reads, and what it learns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megalite.data.arrays import Int64
from megalite.data.chat.own_template import NAME, OwnTemplate
from megalite.data.chat.page import ANSWER, Page, WrittenToken
from megalite.data.chat.templates import TEMPLATES, Template
from megalite.data.chat.turns import Turn
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.errors import ConfigError, DataError
from megalite.models.batch import IGNORE

OPEN = Turn(ANSWER, "")
ANSWERS = (ANSWER,)


@dataclass(frozen=True)
class Conversation:
    """A conversation as a decoder alone reads it.

    Attributes:
        tokens: int64 [n].
        targets: int64 [n], what is learned at the place of each token; IGNORE where nothing is.
    """

    tokens: Int64
    targets: Int64


class Chat:
    """Writes conversations as tokens by one template.

    An answer goes up to its first end token: what a template writes behind that is neither learned
    nor scored.

    Attributes:
        tokenizer: whose tokens they are.
        template: its name.
        end_ids: the tokens that end an answer; empty where the tokenizer has none.
        learned: the roles whose texts are learned.
    """

    def __init__(
        self, template: str, tokenizer: Tokenizer, learned: Sequence[str] = ANSWERS
    ) -> None:
        """Choose a template by name; ``tokenizer`` is the tokenizer's own.

        Raises:
            ConfigError: there is none of this name, the tokenizer lacks a token of it, or it does
                not tell apart what is to be learned.
        """
        names = (*TEMPLATES, NAME)
        if template not in names:
            raise ConfigError(f"template {template!r}: must be one of {', '.join(names)}")
        self.tokenizer, self.template, self.learned = tokenizer, template, tuple(learned)
        self._template = TEMPLATES[template] if template != NAME else _own(tokenizer)
        _check_tokens(template, self._template, tokenizer)
        _check_learned(template, self._template, learned)
        end = self._template.end
        self._end_id = tokenizer.token_id(end) if end else tokenizer.end_id
        self.end_ids = [] if self._end_id is None else [self._end_id]

    def conversation(self, turns: Sequence[Turn]) -> Conversation:
        """A conversation; texts of roles that are learned, and answers' ends, are targets.

        Raises:
            DataError: the template can't write these turns.
        """
        if self._template.learns_last:
            turns = turns[: last_answer(turns) + 1]
        tokens = self._page(turns).tokens()
        answers = self._learned_answers(turns)
        is_target = [
            one.role in self.learned if one.answer is None else one.answer in answers
            for one in tokens
        ]
        for behind in self._behind_ends(tokens):
            is_target[behind] = False
        labels = [one.token if one.label is None else one.label for one in tokens]
        return Conversation(
            np.array([one.token for one in tokens], dtype=np.int64),
            np.where(is_target, labels, IGNORE).astype(np.int64),
        )

    def _learned_answers(self, turns: Sequence[Turn]) -> set[int]:
        """Which answers of a conversation are learned, by their numbers."""
        if ANSWER not in self.learned:
            return set()
        answers = [turn for turn in turns if turn.role == ANSWER]
        learned = {number for number, turn in enumerate(answers) if turn.is_learned}
        return learned & {len(answers) - 1} if self._template.learns_last else learned

    def _behind_ends(self, tokens: Sequence[WrittenToken]) -> list[int]:
        """The places of an answer's tokens that stand behind its first end token."""
        found, ended = [], set()
        for place, one in enumerate(tokens):
            if one.answer in ended and one.label is None:
                found.append(place)
            elif one.answer is not None and one.token in self.end_ids:
                ended.add(one.answer)
        return found

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens that an answer of a decoder alone follows.

        Raises:
            DataError: the template can't write these turns.
        """
        return [one.token for one in self._prompt_page(turns).tokens()]

    def answered(self, turns: Sequence[Turn], text: str) -> tuple[list[int], list[int]]:
        """A prompt and its answer, up to its end, tokenized together for a decoder alone.

        Raises:
            DataError: the template can't write these turns.
        """
        page = self._page((*turns, Turn("assistant", text)))
        tokens, last = page.tokens(), len(page.answers) - 1
        inside = [place for place, one in enumerate(tokens) if one.answer == last]
        answer = self._up_to_end([tokens[place].token for place in inside])
        first = inside[0] if inside else len(tokens)
        return [one.token for one in tokens[:first]], answer

    def source(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens that an encoder reads: a prompt, ended as the tokenizer ends a text.

        Raises:
            DataError: the template can't write these turns.
        """
        page, gap = self._prompt_page(turns), self._template.gap
        final = page.written[-1] if page.written else None
        if gap and final is not None and isinstance(final.segment, str):
            page.written.pop()
            page.text(final.segment.removesuffix(gap))
        tokens = [one.token for one in page.tokens()]
        after = self.tokenizer.after or self._tokenizers_end()
        return tokens if after and tokens[-len(after) :] == after else tokens + after

    def target(self, text: str) -> list[int]:
        """An answer as an encoder-decoder's decoder gives it: the tokenizer's own encoding."""
        own = self.tokenizer
        after = own.after if own.after[-1:] == self.end_ids else self.end_ids
        return own.before + self._up_to_end(own.encode(text) + after)

    def alone(self, text: str) -> list[int]:
        """An answer that stands apart from its prompt, with its end."""
        return self._up_to_end([*self.tokenizer.encode(text), *self.end_ids])

    def _tokenizers_end(self) -> list[int]:
        return [] if self.tokenizer.end_id is None else [self.tokenizer.end_id]

    def _up_to_end(self, answer: list[int]) -> list[int]:
        ends = [place for place, token in enumerate(answer) if token in self.end_ids]
        return answer[: ends[0] + 1] if ends else answer

    def _check_roles(self, turns: Sequence[Turn]) -> None:
        """Refuse turns of roles that the template can't write."""
        others = [turn.role for turn in turns if turn.role not in self._template.roles]
        if others:
            able = [name for name, one in TEMPLATES.items() if others[0] in one.roles]
            raise DataError(
                f"a message of {others[0]} can't be written by the template {self.template}, which "
                f"has {', '.join(self._template.roles)}: choose {' or '.join(able)}"
            )

    def _page(self, turns: Sequence[Turn]) -> Page:
        self._check_roles(turns)
        page = Page(self.tokenizer, self._end_id)
        self._template.write(page, turns)
        return page

    def _prompt_page(self, turns: Sequence[Turn]) -> Page:
        """Turns written up to where their answer begins."""
        if self._template.write_prompt is None:
            page = self._page((*turns, OPEN))
            del page.written[page.answers[-1] :]
            return page
        self._check_roles(turns)
        page = Page(self.tokenizer, self._end_id)
        self._template.write_prompt(page, turns)
        return page


def _own(tokenizer: Tokenizer) -> Template:
    own = OwnTemplate(tokenizer)
    return Template(own.write, write_prompt=own.write_prompt)


def last_answer(turns: Sequence[Turn]) -> int:
    """The place of the last answer that is learned among turns, else of the last one.

    Raises:
        DataError: there is none.
    """
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if not places:
        raise DataError("the conversation has no assistant message to learn")
    return max([place for place in places if turns[place].is_learned], default=places[-1])


def _check_learned(name: str, template: Template, learned: Sequence[str]) -> None:
    """Refuse to learn what a template does not tell apart."""
    others = [role for role in learned if role not in template.tells]
    if others:
        able = [one for one, other in TEMPLATES.items() if others[0] in other.tells]
        raise ConfigError(
            f"--data.learned {others[0]}: the template {name} tells apart "
            f"{', '.join(template.tells)} alone: choose {' or '.join(able)}, or leave it out"
        )


def _check_tokens(name: str, template: Template, tokenizer: Tokenizer) -> None:
    needed = (*template.needs, *(template.blank or ()), *([template.end] if template.end else []))
    missing = [token for token in needed if tokenizer.find(token) is None]
    if missing:
        raise ConfigError(
            f"--data.template {name}: writes {', '.join(map(repr, missing))}, which "
            f"{tokenizer.path} has no token for: take a tokenizer that has it, or another template"
        )
