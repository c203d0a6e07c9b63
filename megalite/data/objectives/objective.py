"""What an objective is, and what several of them need of a document."""

from typing import Protocol

import numpy as np

from megalite.data.arrays import Int64
from megalite.data.example import Example
from megalite.data.structure import Structure


class Objective(Protocol):
    """A pure function from a document and random draws to an example."""

    def __call__(self, tokens: Int64, random: np.random.Generator) -> Example:
        """The example of a document, int64 [n] with n >= 2; the end token may be its last."""

    def sizes(self, lengths: Int64) -> tuple[Int64, Int64]:
        """Most rows that documents of these lengths take, whatever is drawn.

        A longer document never takes fewer.

        Args:
            lengths: int64 [k].

        Returns:
            Rows of the decoder's and of the encoder's stream, each int64 [k].
        """


SHORTEST = 2  # tokens of a document, its end included: one to read, one to learn


def pair_sizes(source: Int64, target: Int64, structure: Structure) -> tuple[Int64, Int64]:
    """Rows of sources and targets of these lengths; see :func:`megalite.data.layout.lead`."""
    if structure.is_encoder_decoder:
        return target, source
    lead = source if structure.blank is None else source + 2
    return lead + target - 1, np.zeros_like(source)


def split_end(tokens: Int64, end_id: int | None) -> tuple[Int64, Int64]:
    """A document without its end token, and the end token alone, both int64.

    A piece of a cut document has none; its example gets one all the same, because the published
    procedures end every source and target.
    """
    if end_id is None:
        return tokens, tokens[:0]
    body = tokens[:-1] if len(tokens) > 1 and tokens[-1] == end_id else tokens
    return body, np.array([end_id], dtype=np.int64)
