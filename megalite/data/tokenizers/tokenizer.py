"""What the rest of the package needs of a tokenizer, whichever library reads it."""

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

from megalite.data.tokenizers.segments import Owned, Segment
from megalite.errors import DataError


class Tokenizer(Protocol):
    """Text to token ids and back.

    Ids need not be contiguous, and a model may have more of them than its tokenizer: an id without
    a token is shown as its number, ``<70000>``.

    Attributes:
        path: what it was read from.
        vocab_size: the largest id + 1.
        end_id: ends a document or an answer; None where the tokenizer has no such token.
        begin_id: begins a document; None where it has none.
        pad_id: stands in padding (0 where it has none: padding is never attended to).
        before, after: what the tokenizer itself writes around a text that a model is to read.
        chat_template: the tokenizer's own chat template (Jinja), or None.
    """

    path: str
    vocab_size: int
    end_id: int | None
    begin_id: int | None
    pad_id: int
    before: list[int]
    after: list[int]
    chat_template: str | None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        ...

    def encode_batch(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Token ids of several texts.

        Args:
            texts: each is encoded alone.
            special: whether special tokens that a text spells out are those tokens; as text, they
                are read letter by letter. SentencePiece's own control symbols are always text.
        """
        ...

    def why_slow(self, num_characters: int) -> str:
        """Why so many characters are not read by ``tiktoken``, which is faster where it can.

        Empty: they are, or they are few, or SentencePiece reads them.
        """
        return ""

    def encode_segments(self, segments: Sequence[Segment]) -> Owned:
        """Tokens of texts with special tokens between them; neighbouring texts are one.

        Args:
            segments: texts, and ids of special tokens.

        Returns:
            Each token, and the number of the segment that has its last character.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        ...

    def find(self, token: str) -> int | None:
        """The id of a token by its exact text, or None."""
        ...

    def token_id(self, token: str) -> int:
        """The id of a token by its exact text.

        Raises:
            DataError: the tokenizer has no such token.
        """
        number = self.find(token)
        if number is None:
            raise DataError(f"{self.path}: has no token {token!r}")
        return number

    def special_tokens(self) -> dict[str, int]:
        """The tokens that no decoded text shows, by their exact text."""
        ...

    def token_texts(self) -> list[str]:
        """The text of every token, by id; empty for special tokens and ids without a token."""
        ...

    def render(self, messages: Sequence[dict[str, str]], is_question: bool) -> str:
        """Messages by the tokenizer's own chat template, up to where an answer begins if asked.

        Raises:
            DataError: the tokenizer has no chat template.
        """
        ...

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer into a folder that ``load_tokenizer`` reads."""
        ...


def shown(number: int) -> str:
    """How an id without a token is shown."""
    return f"<{number}>"


def decode_known(
    ids: Sequence[int], known: Collection[int], decode: Callable[[list[int]], str]
) -> str:
    """Decode runs of known ids; show each other id by its number."""
    parts = []
    for is_known, run in groupby(ids, known.__contains__):
        own = list(run)
        parts.append(decode(own) if is_known else "".join(map(shown, own)))
    return "".join(parts)


def size_of(ids: Collection[int]) -> int:
    """The largest id + 1.

    Raises:
        ValueError: there is no id.
    """
    if not ids:
        raise ValueError("has no tokens")
    return max(ids) + 1


def no_template(path: str) -> DataError:
    """The error of a tokenizer that is asked to render without a chat template."""
    return DataError(f"{path}: has no chat template")
