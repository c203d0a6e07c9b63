"""Windows of a token store: the samples of next-token pretraining."""

import numpy as np

from megalite.data import index
from megalite.data.arrays import Int64
from megalite.data.corpus.store import TokenStore
from megalite.data.example import Example, Intervals, Tokens
from megalite.errors import DataError
from megalite.models.batch import IGNORE


class Windows:
    """Window i is tokens [i S, i S + S] of all documents one after another.

    With ``separate`` documents a token sees its own document only, its position counts from the
    document's start, and a document's last token has no target.
    """

    def __init__(self, store: TokenStore, sequence_length: int, separate: bool = True) -> None:
        """Cut a store into windows.

        Raises:
            DataError: the store has less than one window, or nothing to learn.
        """
        if separate and store.lengths.max() < 2:
            raise DataError(
                f"{store.prefix}: no document has 2 tokens, the least to learn from: prepare it "
                "again, or set data.separate_documents to false"
            )
        self._store, self._length, self._separate = store, sequence_length, separate
        self._index = index.DocumentIndex(store.lengths)
        self._count = (self._index.num_tokens - 1) // sequence_length
        if self._count < 1:
            raise DataError(
                f"{store.prefix}: has {store.num_tokens} tokens, a sample of sequence_length "
                f"{sequence_length} needs {sequence_length + 1}: add text or shorten it"
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Example:
        first = number % self._count * self._length
        tokens, document_starts = self._read(first, first + self._length + 1)
        rows = np.arange(self._length, dtype=np.int32)
        labels = tokens[1:].copy()
        start = np.zeros(self._length, dtype=np.int32)
        if self._separate:
            inside = document_starts[(document_starts > 0) & (document_starts <= self._length)]
            labels[inside - 1] = IGNORE
            inside = inside[inside < self._length]
            start[inside] = inside
            start = np.maximum.accumulate(start)
        mask = Intervals(start, rows + 1)
        return Example(Tokens(tokens[:-1], rows - start, mask), labels)

    def _read(self, first: int, last: int) -> tuple[Int64, Int64]:
        """Tokens [first, last), and the places in them where documents start."""
        ranges = self._index.token_ranges(first, last)
        parts = [self._store.read(*part) for part in ranges.tolist()]
        at = np.cumsum(ranges[:, 2] - ranges[:, 1]) - (ranges[:, 2] - ranges[:, 1])
        return np.concatenate(parts).astype(np.int64), at[ranges[:, 1] == 0]
