r"""Token stores: documents of token ids in Megatron-LM's indexed format, memory-mapped.

``name.bin`` holds the tokens; ``name.idx`` says where each item lies, a document or a part of one:

    9 bytes   MMIDIDX\\0\\0
    uint64    version, 1
    uint8     dtype code
    uint64    number of items
    uint64    number of document entries (documents + 1)
    int32[]   tokens of each item
    int64[]   byte offset of each item
    int64[]   first item of each document, and the number of items

Source: ``megatron/core/datasets/indexed_dataset.py`` of NVIDIA/Megatron-LM.
"""

import functools
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from megalite.data.arrays import Int32, Int64, StoredTokens
from megalite.errors import DataError, naming

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<QBQQ")
DTYPES: dict[int, type[np.number]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
MOST_TOKENS = 2**31 - 1  # of a document
BLOCK = 1 << 16  # documents of the index that are in memory at once


def smallest_dtype(vocab_size: int) -> np.dtype[np.integer]:
    """The dtype of a store of this vocabulary: uint16 where Megatron-LM uses it, else int32."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


class StoreWriter:
    """Writes a store, a document at a time; memory does not grow with it.

    Both files get their names in :meth:`close`; until then an earlier store of this name stays.
    """

    def __init__(self, prefix: Path | str, dtype: DTypeLike) -> None:
        """Open ``prefix.bin.partial`` for writing."""
        self._prefix, self._dtype = str(prefix), np.dtype(dtype)
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        self._file = self._open("bin")
        self._lengths = self._open("lengths")
        self._tokens, self._documents = 0, 0

    def _open(self, kind: str) -> BinaryIO:
        return open(f"{self._prefix}.{kind}.partial", "wb")

    def add(self, tokens: Sequence[int] | StoredTokens, ends: bool = True) -> None:
        """Append tokens to the current document, and end it if ``ends``.

        Raises:
            DataError: the document has more tokens than the format can count.
        """
        array = self._stored(np.asarray(tokens))
        self._tokens += len(array)
        with naming(self._file.name):
            self._file.write(array.tobytes())
        if not ends:
            return
        if self._tokens > MOST_TOKENS:
            raise DataError(
                f"{self._prefix}: document {self._documents} has {self._tokens} tokens, the "
                f"format counts to {MOST_TOKENS}: cut it"
            )
        with naming(self._lengths.name):
            self._lengths.write(np.int32(self._tokens).tobytes())
        self._tokens, self._documents = 0, self._documents + 1

    def _stored(self, tokens: StoredTokens) -> StoredTokens:
        """Tokens in the store's type.

        Raises:
            DataError: the type can't hold one.
        """
        bounds = np.iinfo(self._dtype)
        if len(tokens) and not bounds.min <= tokens.min() <= tokens.max() <= bounds.max:
            raise DataError(
                f"{self._prefix}: token {tokens.max()} doesn't fit a store of {self._dtype}; the "
                "tokenizer has ids beyond its size"
            )
        return tokens.astype(self._dtype)

    def add_store(self, other: "TokenStore") -> None:
        """Append all documents of another store; those that lie in order are copied as a block."""
        if not other.is_in_order:
            for number in range(len(other)):
                self.add(other[number])
            return
        with naming(self._file.name):
            for first in range(0, other.num_tokens, 64 * BLOCK):
                block = other.stream(first, min(first + 64 * BLOCK, other.num_tokens))
                self._file.write(self._stored(block).tobytes())
        with naming(self._lengths.name):
            self._lengths.write(other.lengths.astype(np.int32).tobytes())
        self._documents += len(other)

    def close(self) -> None:
        """Finish both files and give them their names."""
        for file in (self._file, self._lengths):
            _finish(file)
        self._write_index()
        Path(self._lengths.name).unlink()
        index = Path(f"{self._prefix}.idx")
        index.unlink(missing_ok=True)  # an index is never beside tokens that are not its own
        Path(self._file.name).rename(f"{self._prefix}.bin")
        Path(f"{index}.partial").rename(index)

    def _write_index(self) -> None:
        """Write lengths, byte offsets and document numbers, a block at a time."""
        with self._open("idx") as file, naming(file.name):
            file.write(MAGIC)
            file.write(HEADER.pack(1, CODES[self._dtype], self._documents, self._documents + 1))
            for lengths in self._blocks():
                file.write(lengths.tobytes())
            offset = 0
            for lengths in self._blocks():
                ends = offset + np.cumsum(lengths.astype(np.int64) * self._dtype.itemsize)
                file.write(np.concatenate(([offset], ends[:-1])).astype(np.int64).tobytes())
                offset = int(ends[-1])
            for first in range(0, self._documents + 1, BLOCK):
                last = min(first + BLOCK, self._documents + 1)
                file.write(np.arange(first, last, dtype=np.int64).tobytes())
            _finish(file)

    def _blocks(self) -> Iterator[Int32]:
        with open(self._lengths.name, "rb") as file:
            while block := file.read(4 * BLOCK):
                yield np.frombuffer(block, dtype=np.int32)

    def discard(self) -> None:
        """Remove what was written."""
        for file in (self._file, self._lengths):
            with suppress(OSError):  # on a full disk this fails too
                file.close()
            Path(file.name).unlink(missing_ok=True)
        Path(f"{self._prefix}.idx.partial").unlink(missing_ok=True)


def _finish(file: BinaryIO) -> None:
    """Write a file to the disk and close it."""
    with naming(file.name):
        file.flush()
        os.fsync(file.fileno())
        file.close()


class TokenStore:
    """Reads a store; ``store[i]`` is document i as a view of the mapped file.

    Attributes:
        lengths: int64 [documents], tokens of each.
        prefix: path without ``.bin`` and ``.idx``.
    """

    def __init__(self, prefix: Path | str) -> None:
        """Map both files.

        Raises:
            DataError: one is missing, cut short or of another format.
        """
        self.prefix = Path(prefix)
        index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        for path in (index, data):
            if not path.is_file():
                raise DataError(f"{path}: no such file; `megalite data prepare` makes stores")
        found = _read_index(index)
        found.check(index)
        self._dtype = found.dtype
        needed = int(found.ends.max(initial=0))
        if data.stat().st_size < needed:
            raise DataError(
                f"{data}: must have {needed} bytes as its index says, has "
                f"{data.stat().st_size}; it was cut short: prepare it again"
            )
        if not needed:
            raise DataError(f"{data}: holds no tokens; prepare it from text that isn't empty")
        firsts = found.documents
        before = np.concatenate(([0], np.cumsum(found.lengths, dtype=np.int64)))
        self.lengths: Int64 = before[firsts[1:]] - before[firsts[:-1]]
        self._offsets = np.append(found.offsets, found.ends[-1])[firsts[:-1]]
        self._tokens = np.memmap(data, dtype=self._dtype, mode="r")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> StoredTokens:
        return self.read(number, 0, int(self.lengths[number]))

    def read(self, number: int, first: int, last: int) -> StoredTokens:
        """Tokens [first, last) of a document."""
        at = int(self._offsets[number]) // self._dtype.itemsize
        return self._tokens[at + first : at + last]

    def stream(self, first: int, last: int) -> StoredTokens:
        """Tokens [first, last) of all documents one after another, where they lie in order."""
        return self._tokens[first:last]

    @property
    def is_in_order(self) -> bool:
        """Whether the documents lie one after another from the start of the file."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.array_equal(self._offsets, starts * self._dtype.itemsize)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())


@dataclass(frozen=True)
class _Index:
    """What a ``.idx`` says of its items.

    Attributes:
        lengths: int32 [items], tokens of each.
        offsets: int64 [items], bytes before each.
        documents: int64 [documents + 1], first item of each, and the number of items.
        dtype: of a token.
    """

    lengths: Int32
    offsets: Int64
    documents: Int64
    dtype: np.dtype[np.number]

    @functools.cached_property
    def ends(self) -> Int64:
        """Bytes before each item and in it, int64 [items]."""
        return self.offsets + self.lengths.astype(np.int64) * self.dtype.itemsize

    def check(self, path: Path) -> None:
        """Refuse an index that doesn't say where documents of whole tokens lie.

        Raises:
            DataError: it says what is wrong.
        """
        items, documents, reason = len(self.lengths), self.documents, ""
        is_first = np.zeros(items + 1, dtype=bool)
        if not np.issubdtype(self.dtype, np.integer):
            reason = f"its tokens are {self.dtype}, not whole numbers"
        elif (self.lengths < 0).any() or (self.offsets < 0).any():
            reason = "an item has a negative length or place"
        elif (self.offsets % self.dtype.itemsize).any():
            reason = "an item begins within a token"
        elif not len(documents) or documents[0] or (np.diff(documents) < 0).any():
            reason = "its documents are not in order from item 0 on"
        elif documents[-1] != items:
            reason = f"its documents end at item {documents[-1]} of {items}"
        else:
            is_first[documents] = True
            apart = self.offsets[1:] != self.ends[:-1]
            if (apart & ~is_first[1:-1]).any():
                reason = "the items of a document do not lie one after another"
        if reason:
            raise DataError(f"{path}: damaged, {reason}: prepare it again")


def _read_index(path: Path) -> _Index:
    head = len(MAGIC) + HEADER.size
    with open(path, "rb") as file:
        start = file.read(head)
    if len(start) < head or not start.startswith(MAGIC):
        raise DataError(f"{path}: not an index of a token store (it starts with {start[:9]!r})")
    version, code, items, entries = HEADER.unpack(start[len(MAGIC) :])
    if version != 1 or code not in DTYPES:
        raise DataError(f"{path}: version must be 1 and dtype 1..8, came {version} and {code}")
    needed = head + 12 * items + 8 * entries
    if path.stat().st_size < needed:
        size = path.stat().st_size
        raise DataError(f"{path}: must have {needed} bytes, has {size}; prepare it again")
    buffer = np.memmap(path, dtype=np.uint8, mode="r")
    lengths = np.frombuffer(buffer, np.int32, items, head)
    offsets = np.frombuffer(buffer, np.int64, items, head + 4 * items)
    documents = np.frombuffer(buffer, np.int64, entries, head + 12 * items)
    return _Index(lengths, offsets, documents, np.dtype(DTYPES[code]))
