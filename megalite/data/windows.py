"""Fixed windows of a token store: the samples of causal pretraining."""

from collections.abc import Sequence

import numpy as np

from megalite.data.example import Example
from megalite.data.store import TokenStore
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
            DataError: the store has less than one window.
        """
        self._store, self._length, self._separate = store, sequence_length, separate
        self._ends = np.cumsum(store.lengths)
        self._count = (int(self._ends[-1]) - 1) // sequence_length
        if self._count < 1:
            raise DataError(
                f"{store.prefix}: has {store.num_tokens} tokens, a sample of sequence_length "
                f"{sequence_length} needs {sequence_length + 1}: add text or shorten it"
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Example:
        first = number * self._length
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
        return Example(tokens[:-1], labels, start, rows + 1, rows - start)

    def _read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [first, last), int64, and where in them documents start."""
        document = int(np.searchsorted(self._ends, first, side="right"))
        parts, starts, at = [], [], first
        while at < last:
            begin = int(self._ends[document] - self._store.lengths[document])
            if begin >= first:
                starts.append(begin - first)
            stop = min(int(self._ends[document]), last)
            parts.append(self._store.read(document, at - begin, stop - begin))
            at, document = stop, document + 1
        return np.concatenate(parts).astype(np.int64), np.asarray(starts, dtype=np.int64)


class Blend:
    """Several datasets as one, evenly interleaved in proportion to their weights."""

    def __init__(self, datasets: Sequence, weights: Sequence[float]) -> None:
        """Blend; an epoch has as many samples as the datasets together.

        Args:
            datasets: one or more.
            weights: a positive share for each; they need not add up to 1.
        """
        self._datasets = list(datasets)
        total = sum(len(dataset) for dataset in datasets)
        shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        counts = np.maximum(np.round(shares * total).astype(np.int64), 1)
        times = np.concatenate(
            [(np.arange(n) + 0.5) / s for n, s in zip(counts, shares, strict=True)]
        )
        which = np.repeat(np.arange(len(counts)), counts)
        inside = np.concatenate([np.arange(n) for n in counts])
        order = np.argsort(times, kind="stable")
        self._which, self._inside = which[order].astype(np.int32), inside[order]

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, number: int) -> Example:
        dataset = self._datasets[self._which[number]]
        return dataset[int(self._inside[number]) % len(dataset)]
