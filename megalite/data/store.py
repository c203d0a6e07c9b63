r"""Token stores: documents of token ids in Megatron-LM's indexed format, memory-mapped.

``name.bin`` holds the tokens; ``name.idx`` says where each sequence lies:

    9 bytes   MMIDIDX\\0\\0
    uint64    version, 1
    uint8     dtype code
    uint64    number of sequences
    uint64    number of document entries (documents + 1)
    int32[]   tokens of each sequence
    int64[]   byte offset of each sequence
    int64[]   first sequence of each document, and the number of sequences

Source: ``megatron/core/datasets/indexed_dataset.py`` of NVIDIA/Megatron-LM.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megalite.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<QBQQ")
DTYPES = {
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


def smallest_dtype(vocab_size: int) -> np.dtype:
    """The dtype a store of this vocabulary uses: uint16 while it fits, else int32."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


class StoreWriter:
    """Writes a store, a document at a time; memory holds two numbers a document.

    The index is written by :meth:`close`; without it there is no store.
    """

    def __init__(self, prefix: Path | str, dtype: np.dtype) -> None:
        """Open ``prefix.bin`` for writing."""
        self._prefix, self._dtype = Path(prefix), np.dtype(dtype)
        self._prefix.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(f"{prefix}.bin", "wb")  # noqa: SIM115 - closed by close()
        self._lengths: list[int] = []

    def add(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Append a document."""
        array = np.asarray(tokens, dtype=self._dtype)
        self._file.write(array.tobytes())
        self._lengths.append(len(array))

    def add_store(self, other: "TokenStore") -> None:
        """Append all documents of another store."""
        for number in range(len(other)):
            self.add(other[number])

    def close(self) -> None:
        """Finish both files."""
        self._file.close()
        lengths = np.asarray(self._lengths, dtype=np.int32)
        offsets = np.zeros(len(lengths), dtype=np.int64)
        np.cumsum(lengths[:-1].astype(np.int64) * self._dtype.itemsize, out=offsets[1:])
        documents = np.arange(len(lengths) + 1, dtype=np.int64)
        temporary = Path(f"{self._prefix}.idx.partial")
        with open(temporary, "wb") as file:
            file.write(MAGIC)
            file.write(HEADER.pack(1, CODES[self._dtype], len(lengths), len(documents)))
            for array in (lengths, offsets, documents):
                file.write(array.tobytes())
        temporary.rename(f"{self._prefix}.idx")


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
        sequences, self._dtype = _read_index(index)
        lengths, offsets, documents = sequences
        needed = int(offsets[-1]) + int(lengths[-1]) * self._dtype.itemsize if len(lengths) else 0
        if data.stat().st_size < needed:
            raise DataError(
                f"{data}: must have {needed} bytes as its index says, has "
                f"{data.stat().st_size}; it was cut short: prepare it again"
            )
        if not needed:
            raise DataError(f"{data}: holds no tokens; prepare it from text that isn't empty")
        self._offsets = offsets[documents[:-1]]
        ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        self.lengths = ends[documents[1:]] - ends[documents[:-1]]
        self._tokens = np.memmap(data, dtype=self._dtype, mode="r")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.read(number, 0, int(self.lengths[number]))

    def read(self, number: int, first: int, last: int) -> np.ndarray:
        """Tokens [first, last) of a document."""
        at = int(self._offsets[number]) // self._dtype.itemsize
        return self._tokens[at + first : at + last]

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())


def _read_index(path: Path) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.dtype]:
    head = len(MAGIC) + HEADER.size
    with open(path, "rb") as file:
        start = file.read(head)
    if len(start) < head or not start.startswith(MAGIC):
        raise DataError(f"{path}: not an index of a token store (it starts with {start[:9]!r})")
    version, code, sequences, entries = HEADER.unpack(start[len(MAGIC) :])
    if version != 1 or code not in DTYPES:
        raise DataError(f"{path}: version must be 1 and dtype 1..8, came {version} and {code}")
    needed = head + 12 * sequences + 8 * entries
    if path.stat().st_size < needed:
        size = path.stat().st_size
        raise DataError(f"{path}: must have {needed} bytes, has {size}; prepare it again")
    buffer = np.memmap(path, dtype=np.uint8, mode="r")
    lengths = np.frombuffer(buffer, np.int32, sequences, head)
    offsets = np.frombuffer(buffer, np.int64, sequences, head + 4 * sequences)
    documents = np.frombuffer(buffer, np.int64, entries, head + 12 * sequences)
    return (lengths, offsets, documents), np.dtype(DTYPES[code])
