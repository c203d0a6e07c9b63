"""Which examples share a sequence."""

from collections.abc import Sequence

import numpy as np

from megalite.data import index
from megalite.data.arrays import Int64


def first_fit(
    lengths: Sequence[int] | Int64,
    capacity: int,
    encoder_lengths: Sequence[int] | Int64 | None = None,
    encoder_capacity: int = 0,
) -> list[Int64]:
    """Put examples, in their order, each into the first sequence with room in both streams.

    Args:
        lengths: rows of each example's decoder stream, each at most ``capacity``.
        capacity: rows of a sequence.
        encoder_lengths: the same for the encoder's stream; None without one.
        encoder_capacity: rows of a sequence's encoder stream.

    Returns:
        Numbers of the examples in each sequence, int64, ascending.

    Raises:
        ValueError: an example is longer than a sequence.
    """
    encoder = None if encoder_lengths is None else np.asarray(encoder_lengths, dtype=np.int64)
    decoder = np.asarray(lengths, dtype=np.int64)
    items, bounds = index.first_fit(decoder, capacity, encoder, encoder_capacity)
    return np.split(items, bounds[1:-1]) if len(items) else []
