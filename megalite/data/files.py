"""Data files as they lie on a disk: their format, and what is compressed opened as bytes."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from megalite.errors import DataError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

PARQUET = b"PAR1"
# Frames to be skipped, of which pzstd writes one in front of each that holds data: RFC 8878, 3.1.2.
SKIPPED = tuple(bytes([first, 0x2A, 0x4D, 0x18]) for first in range(0x50, 0x60))
COMPRESSED = {  # the first bytes of a compressed file, whatever its name says
    ".gz": (b"\x1f\x8b",),
    ".bz2": (b"BZh",),
    ".xz": (b"\xfd7zXZ\x00",),
    ".zst": (b"\x28\xb5\x2f\xfd", *SKIPPED),
}
UNREADABLE = {  # what holds rows or files that are not read here, by a name's end
    ".csv": "a table",
    ".tsv": "a table",
    ".xlsx": "a table",
    ".arrow": "an Arrow file",
    ".feather": "an Arrow file",
    ".avro": "an Avro file",
    ".orc": "an ORC file",
    ".tar": "an archive",
    ".tgz": "an archive",
    ".zip": "an archive",
    ".7z": "an archive",
    ".rar": "an archive",
    ".lz4": "compressed by LZ4",
    ".z": "compressed by compress",
}
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)


def format_of(path: Path) -> str:
    """The end of a file's name in lower case, without that of a compression: ``.jsonl``."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED else name.suffix


def compression_of(path: Path) -> str:
    """How a file is compressed, by its first bytes: a key of :data:`COMPRESSED`, or empty."""
    with open(path, "rb") as file:
        start = file.read(8)
    return next((name for name, marks in COMPRESSED.items() if start.startswith(marks)), "")


def refuse_unreadable(path: Path) -> None:
    """Refuse a file that by its name holds rows in a format that is not read here.

    Raises:
        DataError: it says what to do.
    """
    what = UNREADABLE.get(format_of(path)) or UNREADABLE.get(path.suffix.lower())
    if what:
        raise DataError(
            f"{path}: is {what}, which is not read here: write it as JSON lines (.jsonl) or Parquet"
        )


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed if it is compressed by gzip, bzip2, xz or zstd.

    Raises:
        DataError: what is compressed is damaged, or pyarrow, which reads zstd, is not installed.
    """
    how = compression_of(path)
    if not how:
        with open(path, "rb") as plain:
            yield plain
        return
    with _OPENERS[how](path) as file:
        try:
            yield file
        except DAMAGED as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path}: damaged, {how[1:]} can't decompress it: {reason}") from None


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"{path}: zstd needs pyarrow: pip install pyarrow") from None
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": gzip.GzipFile,  # type: ignore[dict-item]
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet, by its name or its first bytes."""
    if format_of(path) == ".parquet":
        return True
    with open(path, "rb") as file:
        return file.read(len(PARQUET)) == PARQUET


def open_parquet(path: Path) -> "ParquetFile":
    """Open a Parquet file.

    Raises:
        DataError: pyarrow is not installed, or the file is not Parquet.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from None
    if how := compression_of(path):
        raise DataError(f"{path}: is compressed by {how[1:]} as a whole: decompress it first")
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a Parquet file: {reason}") from None
