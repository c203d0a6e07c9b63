"""Documents of a store as samples of an objective, several of them in a sequence."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from megalite.data import index
from megalite.data.arrays import Int64
from megalite.data.corpus.store import TokenStore
from megalite.data.example import Example, pack
from megalite.data.objectives.objective import SHORTEST, Objective
from megalite.data.packing import first_fit
from megalite.errors import ConfigError, DataError
from megalite.seeds import fold, hash64

BLOCK = 1024  # pieces that are packed together: sequences 99% full, 0.2 ms to pack a block again
DRAWS = hash64("objective")


@dataclass(frozen=True)
class Room:
    """What fits a sequence.

    Attributes:
        decoder: rows of the decoder's stream.
        encoder: rows of the encoder's stream; irrelevant without an encoder.
    """

    decoder: int
    encoder: int


def longest_document(objective: Objective, room: Room) -> int:
    """Tokens of the longest document whose example fits a sequence, whatever is drawn.

    Raises:
        ConfigError: not even the shortest fits.
    """
    lengths = np.arange(SHORTEST, 2 * (room.decoder + room.encoder) + SHORTEST)
    decoder, encoder = objective.sizes(lengths)
    fits = (decoder <= room.decoder) & (encoder <= room.encoder)
    if not fits[0]:
        raise ConfigError(
            f"--data.sequence_length {room.decoder}: the shortest example takes {decoder[0]} rows "
            f"and {encoder[0]} of data.encoder_length {room.encoder}: raise them"
        )
    return int(lengths[fits][-1])


@dataclass(frozen=True)
class _Block:
    """Consecutive pieces of documents, packed.

    Attributes:
        first: the first piece's number.
        ranges: int64 [n, 3]: document, first and last token of each piece.
        sequences: places in ``ranges`` of each sequence's pieces.
    """

    first: int
    ranges: Int64
    sequences: list[Int64]


class PackedDocuments:
    """Sample i is a sequence of whole examples, one of each piece of a document; none sees another.

    A document longer than fits a sequence is cut into pieces. Pieces are put into sequences by
    first fit, :data:`BLOCK` of them at a time: memory is one number per block, and the pieces of a
    sequence are found by packing its block again. Numbers go on beyond an epoch: the same pieces
    with other draws.
    """

    def __init__(self, store: TokenStore, objective: Objective, room: Room, seed: int) -> None:
        """Cut and pack a store.

        Args:
            store: the documents.
            objective: makes an example of each piece.
            room: of a sequence.
            seed: of the draws; those of an example are a function of it, the epoch and the piece.

        Raises:
            ConfigError: a sequence has no room for any example.
            DataError: the store has no document of two tokens.
        """
        self._store, self._objective, self._room = store, objective, room
        longest = longest_document(objective, room)
        self._index = index.DocumentIndex(store.lengths, longest)
        self._seed = fold(seed, DRAWS)
        self._packed = lru_cache(maxsize=64)(self._pack_block)
        blocks = -(-self._index.num_pieces // BLOCK)
        counts = [len(self._pack_block(number).sequences) for number in range(blocks)]
        self._bounds = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        if not self._bounds[-1]:
            raise DataError(
                f"{store.prefix}: no document has {SHORTEST} tokens, the least to learn"
            )

    def _pack_block(self, number: int) -> _Block:
        first = number * BLOCK
        ranges = self._index.piece_ranges(first, min(first + BLOCK, self._index.num_pieces))
        lengths = ranges[:, 2] - ranges[:, 1]
        usable = np.flatnonzero(lengths >= SHORTEST)
        decoder, encoder = self._objective.sizes(lengths[usable])
        packed = first_fit(decoder, self._room.decoder, encoder, self._room.encoder)
        return _Block(first, ranges, [usable[places] for places in packed])

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, number: int) -> Example:
        epoch, place = divmod(number, len(self))
        which = int(np.searchsorted(self._bounds, place, side="right")) - 1
        block = self._packed(which)
        pieces = block.sequences[place - int(self._bounds[which])]
        return pack([self._example(block.ranges[i], epoch, block.first + int(i)) for i in pieces])

    def _example(self, piece: Int64, epoch: int, number: int) -> Example:
        tokens = self._store.read(*piece.tolist()).astype(np.int64)
        random = np.random.Generator(np.random.Philox(key=fold(self._seed, epoch, number)))
        return self._objective(tokens, random)
