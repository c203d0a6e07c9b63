"""Log-probabilities of an answer's tokens, in the forms of OpenAI's API.

Source: OpenAI's API reference, "Chat" and "Completions", ``logprobs``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megalite.generation.scores import Scored
from megalite.generation.text import INCOMPLETE, TextStream

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class TokenScore:
    """A token by its text.

    Attributes:
        text: of it, as it stands behind the token before.
        log_prob: of it.
        likeliest: texts and log-probabilities of the likeliest tokens in its place.
        offset: where it begins in its choice's text.
    """

    text: str
    log_prob: float
    likeliest: tuple[tuple[str, float], ...]
    offset: int


class TokenScores:
    """Scores of one answer's tokens, given as their texts become a part of it.

    So the tokens of a stop text, which is no part, are not among them.
    """

    def __init__(self, decode: Decode, names: Mapping[int, str], start: int = 0) -> None:
        """Have no tokens yet.

        Args:
            decode: from token ids to text.
            names: of tokens that no decoded text shows.
            start: where the answer begins in its choice's text.
        """
        self._decode, self._names, self._start = decode, names, start
        self._stream = TextStream(decode)
        self._before: list[int] = []  # the last token
        self._waiting: list[TokenScore] = []

    def add(self, scored: Scored) -> None:
        """Take the next token."""
        offset = self._start + len(self._stream.text)
        pairs = tuple((self._text(token), value) for token, value in scored.likeliest)
        self._waiting.append(TokenScore(self._text(scored.token), scored.log_prob, pairs, offset))
        self._stream.add(scored.token)
        self._before = [scored.token]

    def until(self, length: int | None = None) -> list[TokenScore]:
        """Those that begin before this place of the choice's text and were not given; None: all."""
        ready = [one for one in self._waiting if length is None or one.offset < length]
        self._waiting = self._waiting[len(ready) :]
        return ready

    def _text(self, token: int) -> str:
        if token in self._names:
            return self._names[token]
        return self._decode([*self._before, token])[len(self._decode(self._before)) :]


def chat_form(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """``logprobs`` of a chat's choice."""
    return {
        "content": [
            {
                **_entry(one.text, one.log_prob),
                "top_logprobs": [_entry(*pair) for pair in one.likeliest],
            }
            for one in scores
        ],
        "refusal": None,
    }


def completion_form(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """``logprobs`` of a completion's choice; the drawn token is among the likeliest of each."""
    return {
        "tokens": [one.text for one in scores],
        "token_logprobs": [one.log_prob for one in scores],
        "top_logprobs": [
            {**dict(reversed(one.likeliest)), one.text: one.log_prob} for one in scores
        ],
        "text_offset": [one.offset for one in scores],
    }


def _entry(text: str, log_prob: float) -> dict[str, Any]:
    """A token; bytes that are no whole character are not known."""
    known = None if INCOMPLETE in text else list(text.encode())
    return {"token": text, "logprob": log_prob, "bytes": known}
