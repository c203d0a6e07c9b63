"""Which samples share a row."""

from collections.abc import Sequence

import numpy as np

from megalite.data import index


def first_fit(
    lengths: Sequence[int] | np.ndarray,
    capacity: int,
    encoder_lengths: Sequence[int] | np.ndarray | None = None,
    encoder_capacity: int = 0,
) -> list[np.ndarray]:
    """Put items into rows in their order, each into the first row with room in both streams.

    Args:
        lengths: of the items in the decoder's stream, each at most ``capacity``.
        capacity: of a row.
        encoder_lengths: the same for the encoder's stream; None without one.
        encoder_capacity: of a row.

    Returns:
        Items of each row, int64, ascending.

    Raises:
        ValueError: an item is longer than a row.
    """
    encoder = None if encoder_lengths is None else np.asarray(encoder_lengths, dtype=np.int64)
    decoder = np.asarray(lengths, dtype=np.int64)
    items, bounds = index.first_fit(decoder, capacity, encoder, encoder_capacity)
    return np.split(items, bounds[1:-1]) if len(items) else []
