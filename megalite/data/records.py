"""Records of data files: lines of JSONL, items of a JSON list, rows of Parquet."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from megalite.errors import DataError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

T = TypeVar("T")
Record = dict[str, Any]  # of whatever JSON holds


def read_records(paths: Sequence[Path | str], parse: Callable[[Record], T]) -> list[T]:
    """Read and parse every record of JSONL, JSON or Parquet files; see :func:`located_records`."""
    return [parsed for _, parsed in located_records(paths, parse)]


def located_records(
    paths: Sequence[Path | str], parse: Callable[[Record], T]
) -> Iterator[tuple[str, T]]:
    """Parse every record of JSONL, JSON or Parquet files.

    Yields:
        The place of a record, such as ``file:line``, and what was parsed.

    Raises:
        DataError: a record is malformed; names its place.
    """
    for path in paths:
        is_empty = True
        for where, record in _records(Path(path)):
            try:
                yield where, parse(record)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{where}: {_reason(error)}") from None
            is_empty = False
        if is_empty:
            raise DataError(f"{path}: is empty; it needs at least one record")


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"key {error.args[0]!r} is missing"
    return str(error)


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".parquet":
        yield from _parquet_records(path)
    elif path.suffix == ".json":
        yield from _json_records(path)
    else:
        yield from jsonl_records(path)


def jsonl_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Read JSONL; blank lines are left out.

    Yields:
        ``file:line`` and the object on that line.

    Raises:
        DataError: a line is not a JSON object in UTF-8.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            yield f"{path}:{number}", parse_line(f"{path}:{number}", line)


def parse_line(where: str, line: bytes) -> Record:
    """Parse one line of JSONL.

    Raises:
        DataError: it is not a JSON object in UTF-8.
    """
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{where}: must be UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; deep nesting
        raise DataError(f"{where}: not JSON that can be read: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: must be a JSON object, came {type(record).__name__}")
    return record


def _json_records(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
        raise DataError(f"{path}: must be a list of JSON objects")
    for number, record in enumerate(records, 1):
        yield f"{path}:record {number}", record


def _parquet_records(path: Path) -> Iterator[tuple[str, Record]]:
    file, number = open_parquet(path), 0
    try:
        for batch in file.iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}:record {number}", record
    except (OSError, ValueError) as error:  # pyarrow's errors about a damaged file
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: damaged after record {number}: {reason}") from None


def open_parquet(path: Path) -> "ParquetFile":
    """Open a Parquet file.

    Raises:
        DataError: pyarrow is not installed, or the file is not Parquet.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a Parquet file: {reason}") from None


def check_unicode(text: str) -> None:
    """Refuse half of a surrogate pair, which JSON can write and no encoding can.

    Raises:
        ValueError: there is one.
    """
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"character {error.start} is half of a surrogate pair") from None
