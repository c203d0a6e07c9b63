"""A conversation as tokens, some of which are learned, and the example it makes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megalite.data.example import Example, decoder_example
from megalite.models.batch import IGNORE


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a conversation.

    Attributes:
        tokens: their ids.
        is_target: whether they are learned.
    """

    tokens: list[int]
    is_target: bool


def conversation_example(segments: Sequence[Segment], prefix: bool = False) -> Example:
    """A decoder's example that learns the target segments.

    Args:
        segments: of a conversation.
        prefix: whether the rows before the first target see each other both ways.
    """
    tokens = np.array([t for segment in segments for t in segment.tokens], dtype=np.int64)
    targets = np.array([s.is_target for s in segments for _ in s.tokens], dtype=bool)
    labels = np.where(targets[1:], tokens[1:], IGNORE)
    first = int(targets.argmax()) if prefix else 0
    return decoder_example(tokens[:-1], labels, first)
