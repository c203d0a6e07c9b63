"""Documents of a store as samples of an objective, several of them in a row."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from megalite.data import index
from megalite.data.example import Array, Example, pack
from megalite.data.objectives.objective import SHORTEST, Objective
from megalite.data.packing import first_fit
from megalite.data.store import TokenStore
from megalite.errors import ConfigError, DataError
from megalite.ops.random import fold, hash64

BLOCK = 1024  # pieces that are packed together: 99% full rows, and 0.2 ms to pack them anew
DRAWS = hash64("objective")


@dataclass(frozen=True)
class Room:
    """What fits a row.

    Attributes:
        decoder: rows of the decoder's stream.
        encoder: rows of the encoder's; of no account without one.
    """

    decoder: int
    encoder: int


def longest_document(objective: Objective, room: Room) -> int:
    """Tokens of the longest document whose sample fits a row, whatever is drawn.

    Raises:
        ConfigError: not even the shortest fits.
    """
    lengths = np.arange(SHORTEST, 2 * (room.decoder + room.encoder) + SHORTEST)
    decoder, encoder = objective.sizes(lengths)
    fits = (decoder <= room.decoder) & (encoder <= room.encoder)
    if not fits[0]:
        raise ConfigError(
            f"--data.sequence_length {room.decoder}: the shortest sample takes {decoder[0]} rows "
            f"and {encoder[0]} of data.encoder_length {room.encoder}: raise them"
        )
    return int(lengths[fits][-1])


class DocumentRows:
    """Row i holds whole samples of pieces of documents; none sees another.

    A document longer than fits a row is cut into pieces. Pieces are put into rows by first fit,
    :data:`BLOCK` of them at a time: memory is one number a block, and a row's pieces are found by
    packing its block again. Numbers go on beyond an epoch: the same rows with other draws.
    """

    def __init__(self, store: TokenStore, objective: Objective, room: Room, seed: int) -> None:
        """Cut and pack a store.

        Args:
            store: the documents.
            objective: makes a sample of each piece.
            room: of a row.
            seed: of the draws; those of a sample are a function of it, the epoch and the piece.

        Raises:
            ConfigError: a row has no room for any sample.
            DataError: the store has no document of two tokens.
        """
        self._store, self._objective, self._room = store, objective, room
        longest = longest_document(objective, room)
        self._index = index.DocumentIndex(store.lengths, longest)
        self._seed = fold(seed, DRAWS)
        self._packed = lru_cache(maxsize=64)(self._pack_block)
        blocks = -(-self._index.num_pieces // BLOCK)
        counts = [len(self._pack_block(block)[1]) for block in range(blocks)]
        self._bounds = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        if not self._bounds[-1]:
            raise DataError(
                f"{store.prefix}: no document has {SHORTEST} tokens, the least to learn"
            )

    def _pack_block(self, block: int) -> tuple[Array, list[Array]]:
        """Pieces of a block, int64 [n, 3], and those of each row."""
        first = block * BLOCK
        ranges = self._index.piece_ranges(first, min(first + BLOCK, self._index.num_pieces))
        lengths = ranges[:, 2] - ranges[:, 1]
        usable = np.flatnonzero(lengths >= SHORTEST)
        decoder, encoder = self._objective.sizes(lengths[usable])
        rows = first_fit(decoder, self._room.decoder, encoder, self._room.encoder)
        return ranges, [usable[row] for row in rows]

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, number: int) -> Example:
        epoch, row = divmod(number, len(self))
        block = int(np.searchsorted(self._bounds, row, side="right")) - 1
        ranges, rows = self._packed(block)
        pieces = rows[row - int(self._bounds[block])]
        return pack([self._sample(ranges[i], epoch, block * BLOCK + int(i)) for i in pieces])

    def _sample(self, piece: Array, epoch: int, number: int) -> Example:
        tokens = self._store.read(*piece.tolist()).astype(np.int64)
        random = np.random.Generator(np.random.Philox(key=fold(self._seed, epoch, number)))
        return self._objective(tokens, random)
