"""What an objective is, and what several of them need of a document."""

from typing import Protocol

import numpy as np

from megalite.data.example import Array, Example
from megalite.data.structure import Structure


class Objective(Protocol):
    """A pure function of a document and random draws to a sample."""

    def __call__(self, tokens: Array, random: np.random.Generator) -> Example:
        """The sample of a document, int64 [n] with n >= 2; the end token may be its last."""

    def sizes(self, lengths: Array) -> tuple[Array, Array]:
        """Most rows that documents of these lengths take, whatever is drawn.

        Neither falls as the length grows.

        Args:
            lengths: int64 [k].

        Returns:
            Rows of the decoder's and of the encoder's stream, each int64 [k].
        """


SHORTEST = 2  # tokens of a document that has something to read and something to learn


def pair_sizes(source: Array, target: Array, structure: Structure) -> tuple[Array, Array]:
    """Rows of sources and targets of these lengths; see :func:`megalite.data.layout.lead`."""
    if structure.is_encoder_decoder:
        return target, source
    lead = source if structure.blank is None else source + 2
    return lead + target - 1, np.zeros_like(source)


def split_end(tokens: Array, end_id: int | None) -> tuple[Array, Array]:
    """A document without its end token, and the end token alone, both int64.

    A document that was cut has none; its sample gets one all the same, as published procedures end
    every input and target.
    """
    if end_id is None:
        return tokens, tokens[:0]
    body = tokens[:-1] if len(tokens) > SHORTEST and tokens[-1] == end_id else tokens
    return body, np.array([end_id], dtype=np.int64)
