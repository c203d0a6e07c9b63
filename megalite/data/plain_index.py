"""The index of data in Python, for a package without compiled extensions; as ``csrc/index``."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
TICK_BITS = 48  # a tick is 2^-48 of the whole; few samples share one
MOST_SAMPLES = 1 << 60


class DocumentIndex:
    """Where the tokens and pieces of documents lie."""

    def __init__(self, lengths: Int64, longest: int = 1) -> None:
        """Index documents of these lengths, int64 [documents], cut into pieces of ``longest``.

        Raises:
            ValueError: a length is below 0, or ``longest`` below 1.
            TypeError: lengths are no integers.
        """
        _check_array("lengths", lengths)
        if longest < 1:
            raise ValueError(f"longest: must be positive, came {longest}")
        if len(below := np.flatnonzero(lengths < 0)):
            raise ValueError(
                f"document {below[0]}: its length must be 0 or more, came {lengths[below[0]]}"
            )
        self._longest = longest
        self._tokens = _sums(lengths)
        self._pieces = _sums(-(-lengths // longest))

    @property
    def num_tokens(self) -> int:
        """Of all documents."""
        return int(self._tokens[-1])

    @property
    def num_pieces(self) -> int:
        """Of all documents."""
        return int(self._pieces[-1])

    def token_ranges(self, first: int, last: int) -> Int64:
        """Parts (document, first, end) that make up tokens [first, last): int64 [n, 3].

        Raises:
            IndexError: they lie outside of the documents.
        """
        _check("tokens", first, last, self.num_tokens)
        documents = _touched(self._tokens, first, last)
        begin, end = self._tokens[documents], self._tokens[documents + 1]
        ranges = np.stack(
            [documents, np.maximum(first, begin) - begin, np.minimum(last, end) - begin], axis=1
        )
        return ranges[ranges[:, 1] < ranges[:, 2]]

    def piece_ranges(self, first: int, last: int) -> Int64:
        """Pieces [first, last) as (document, first, end): int64 [last - first, 3].

        Raises:
            IndexError: they lie outside of the documents.
        """
        _check("pieces", first, last, self.num_pieces)
        pieces = np.arange(first, last)
        documents = np.searchsorted(self._pieces, pieces, side="right") - 1
        begin = (pieces - self._pieces[documents]) * self._longest
        lengths = self._tokens[documents + 1] - self._tokens[documents]
        return np.stack([documents, begin, np.minimum(begin + self._longest, lengths)], axis=1)


class Blend:
    """Datasets interleaved evenly: sample j of n stands at time (2 j + 1) / 2 n."""

    def __init__(self, counts: Sequence[int]) -> None:
        """Interleave datasets of these numbers of samples.

        Raises:
            ValueError: there is none, one is empty, or they are more than 2^60 samples.
        """
        if not counts:
            raise ValueError("counts: must be at least one")
        self._counts, self._size = [int(count) for count in counts], 0
        for count in self._counts:
            if not 1 <= count <= MOST_SAMPLES - self._size:
                raise ValueError(
                    f"counts: each must be positive and their sum at most 2^60, came {count}"
                )
            self._size += count

    def __len__(self) -> int:
        return self._size

    def at(self, number: int) -> tuple[int, int]:
        """Its (dataset, sample inside it).

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= number < self._size:
            raise IndexError(f"sample {number}: must lie in [0, {self._size})")
        before, after = 0, 1 << TICK_BITS  # more than ``number`` samples until ``after``
        while after - before > 1:
            middle = (before + after) // 2
            if sum(self._until(middle)) > number:
                after = middle
            else:
                before = middle
        first, end = self._until(before), self._until(after)
        candidates = sorted(
            (Fraction(2 * inside + 1, count), dataset, inside)
            for dataset, count in enumerate(self._counts)
            for inside in range(first[dataset], end[dataset])
        )
        _, dataset, inside = candidates[number - sum(first)]
        return dataset, inside

    def _until(self, tick: int) -> list[int]:
        """Samples of each dataset at times up to ``tick``."""
        half = 1 << TICK_BITS
        return [(2 * count * tick + half) >> (TICK_BITS + 1) for count in self._counts]


def first_fit(
    lengths: Int64,
    capacity: int,
    encoder_lengths: Int64 | None = None,
    encoder_capacity: int = 0,
) -> tuple[Int64, Int64]:
    """Put items into rows, each into the first with room in both streams.

    Returns:
        items and bounds, row r being ``items[bounds[r]:bounds[r + 1]]``.

    Raises:
        ValueError: an item is longer than a row, or they are not as many in both streams.
        TypeError: lengths are no integers.
    """
    _check_array("lengths", lengths)
    if encoder_lengths is not None and len(encoder_lengths) != len(lengths):
        raise ValueError(f"encoder_lengths: must be as many as lengths, {len(lengths)}")
    encoder = np.zeros_like(lengths) if encoder_lengths is None else encoder_lengths
    sizes = np.stack([lengths, encoder], axis=1)
    full = np.array([capacity, encoder_capacity])
    room = np.empty((len(sizes), 2), np.int64)  # left in each row
    rows: list[list[int]] = []
    for number, size in enumerate(sizes):
        if (size < 0).any() or (size > full).any():
            raise ValueError(
                f"item {number}: lengths must lie in [0, {capacity} and {encoder_capacity}], "
                f"came {size[0]} and {size[1]}"
            )
        fits = (room[: len(rows)] >= size).all(axis=1)
        row = int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            room[row] = full
        room[row] -= size
        rows[row].append(number)
    items = [item for row in rows for item in row]
    return np.array(items, np.int64), _sums(np.array([len(row) for row in rows], np.int64))


def _sums(values: Int64) -> Int64:
    """Sums of all values before each, and of all."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])


def _touched(sums: Int64, first: int, last: int) -> Int64:
    """Numbers of the documents that tokens [first, last) may lie in."""
    if first == last:
        return np.zeros(0, np.int64)
    low = int(np.searchsorted(sums, first, side="right")) - 1
    return np.arange(low, int(np.searchsorted(sums, last, side="left")))


def _check(what: str, first: int, last: int, count: int) -> None:
    if not 0 <= first <= last <= count:
        raise IndexError(f"{what} [{first}, {last}): must lie in [0, {count})")


def _check_array(name: str, array: Int64) -> None:
    if array.dtype.kind != "i":
        raise TypeError(f"{name}: must be integers, came {array.dtype}, which is incompatible")
    if array.ndim != 1:
        raise ValueError(f"{name}: must have one dimension, came {array.ndim}")
