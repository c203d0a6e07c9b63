"""A conversation as it is written: texts and special tokens, and which of them are an answer's."""

from collections.abc import Sequence
from dataclasses import dataclass

from megalite.data.tokenizers.segments import Segment
from megalite.data.tokenizers.tokenizer import Tokenizer

CUT = None  # what stands before it and behind it is tokenized apart
ANSWER, MARKS = "assistant", "marks"  # whose text is an answer, and what a template writes itself


@dataclass(frozen=True)
class Written:
    """A text or a special token of a conversation.

    Attributes:
        segment: the text, or the token's id.
        answer: the number of the answer that it belongs to; None: it belongs to none.
        label: what is learned in place of the token itself, or None.
        role: whose text it is; :data:`MARKS`: the template's own, "": never learned.
    """

    segment: Segment
    answer: int | None
    label: int | None = None
    role: str = MARKS


@dataclass(frozen=True)
class WrittenToken:
    """A token of a conversation; see :class:`Written`."""

    token: int
    answer: int | None
    label: int | None = None
    role: str = MARKS


class Page:
    """What a template writes on.

    Neighbouring texts are tokenized as one, and so are texts with special tokens between them
    where the tokenizer finds those in a text.

    Attributes:
        tokenizer: whose tokens are written.
        end_id: the token that ends an answer, or None.
        written: so far.
        answers: where in ``written`` each answer begins.
    """

    def __init__(self, tokenizer: Tokenizer, end_id: int | None) -> None:
        """Begin an empty page."""
        self.tokenizer, self.end_id = tokenizer, end_id
        self.written: list[Written | None] = []
        self.answers: list[int] = []

    def text(self, text: str, role: str = MARKS) -> None:
        """Write a text; ``role`` says whose it is, where the template tells that."""
        if text:
            self.written.append(Written(text, None, role=role))

    def token(self, number: int | None) -> None:
        """Write a special token, if the tokenizer has it."""
        if number is not None:
            self.written.append(Written(number, None))

    def named(self, token: str) -> None:
        """Write a special token by its text."""
        self.token(self.tokenizer.token_id(token))

    def question(self, token: str) -> None:
        """Write a special token where the end of the last answer is learned in its place."""
        number = self.tokenizer.token_id(token)
        self.written.append(Written(number, len(self.answers) - 1, self.end_id))

    def opening(self) -> None:
        """Write what the tokenizer itself writes before a text, which still begins behind it."""
        for number in self.tokenizer.before:
            self.token(number)
        self.cut()

    def cut(self) -> None:
        """Tokenize what follows apart from what stands before."""
        self.written.append(CUT)

    def answer(self, text: str, ends: bool = True) -> None:
        """Write an answer, and what ends it."""
        self.answer_begins()
        self.answer_goes_on(text)
        if ends:
            self.answer_ends()

    def answer_begins(self) -> None:
        """What is written up to here is the prompt of an answer."""
        self.answers.append(len(self.written))

    def answer_goes_on(self, text: str) -> None:
        """Write some text of the answer that has begun."""
        if text:
            self.written.append(Written(text, len(self.answers) - 1))

    def answer_ends(self) -> None:
        """Write what ends the answer that has begun."""
        if self.end_id is not None:
            self.written.append(Written(self.end_id, len(self.answers) - 1))

    def tokens(self, last: int | None = None) -> list[WrittenToken]:
        """The tokens of what is written, up to ``last`` in ``written``; None: of all."""
        tokens: list[WrittenToken] = []
        group: list[Written] = []
        for one in (*self.written[:last], CUT):
            if one is not CUT:
                group.append(one)
                continue
            tokens += self._together(group) if group else []
            group = []
        return tokens

    def _together(self, group: Sequence[Written]) -> list[WrittenToken]:
        owned = self.tokenizer.encode_segments([one.segment for one in group])
        return [
            WrittenToken(token, group[n].answer, group[n].label, group[n].role)
            for token, n in owned
        ]
