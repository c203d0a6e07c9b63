"""Records of data files: lines of JSON, items of a JSON list, rows of Parquet.

A file's content says what it is, not its name: JSON lines may be called ``.json``, a list
``.jsonl``, and either may be compressed.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from megalite.data.files import is_parquet, open_bytes, open_parquet, refuse_unreadable
from megalite.data.hub_rows import hub_rows, is_hub_rows
from megalite.data.split import Split, nothing_left
from megalite.errors import DataError

T = TypeVar("T")
Record = dict[str, Any]  # of whatever JSON holds
WHOLE = Split()
EMPTY: tuple[Any, ...] = ("", [], {})


class Fields(Record):
    """A record under the names that are known here; a null is as good as no key.

    Attributes:
        whole: the record as the file has it.
        unread: the file's names of what was not read; what is empty says nothing.
        named: those of ``columns`` that are in it or in a record inside it.
    """

    def __init__(self, record: Record, columns: Mapping[str, str] | None = None) -> None:
        """Rename ``record``: ``columns`` are the file's names by those that are known here."""
        self._columns, self.whole = dict(columns or {}), record
        known = {theirs: ours for ours, theirs in self._columns.items()}
        given = {key: value for key, value in record.items() if value is not None}
        renamed = {known[key]: value for key, value in given.items() if key in known}
        super().__init__({k: v for k, v in given.items() if k not in known} | renamed)
        self.unread = {key for key, value in given.items() if value not in EMPTY}
        self.named = set(known) & set(record)

    @classmethod
    def of(cls, record: Record) -> "Fields":
        """The record itself where it is one of these already."""
        return record if isinstance(record, Fields) else cls(record)

    def inner(self, record: Record) -> "Fields":
        """A record inside this one, such as a message."""
        found = Fields(record, self._columns)
        self.named |= found.named
        return found

    def pass_over_all(self) -> None:
        """Take all keys for read: somebody has the whole record."""
        self.unread = set()

    def pass_over(self, *keys: str) -> None:
        """Take keys for read, whatever they hold."""
        self.unread -= {self._columns.get(key, key) for key in keys}

    def __getitem__(self, key: str) -> Any:
        self.pass_over(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or ``default``."""
        self.pass_over(key)
        return super().get(key, default)


class Records(Generic[T]):
    """The parsed records of files; counts what they have and nobody read."""

    def __init__(
        self,
        paths: Sequence[Path | str],
        parse: Callable[[Fields], T],
        columns: Mapping[str, str] | None = None,
        split: Split = WHOLE,
    ) -> None:
        """Read JSON or Parquet files.

        Args:
            paths: of the files.
            parse: makes something of a record.
            columns: the files' names of keys by the names that ``parse`` knows.
            split: which records are read; they are counted through all files.
        """
        self._paths, self._parse, self._columns = paths, parse, dict(columns or {})
        self._split = split
        self._count, self._unread, self._missing = 0, Counter[str](), set(self._columns.values())

    def __iter__(self) -> Iterator[tuple[str, T]]:
        """Yield the place of a record, such as ``file:line``, and what was parsed.

        Raises:
            DataError: a record is malformed; names its place.
        """
        number = 0
        for path in self._paths:
            before = number
            for number, (where, record) in enumerate(_records(path), before + 1):
                if self._split.has(number - 1):
                    yield where, self._parsed(where, record)
            if number == before:
                raise DataError(f"{path}: is empty; it needs at least one record")
        if not self._count:
            raise nothing_left(self._split, ", ".join(map(str, self._paths)), number)

    def _parsed(self, where: str, record: Record) -> T:
        fields = Fields(record, self._columns)
        try:
            parsed = self._parse(fields)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: {_reason(error, fields)}") from None
        self._count += 1
        self._missing -= fields.named
        self._unread.update(fields.unread)
        return parsed

    def notes(self) -> list[str]:
        """What the records that were read have and nobody asked for, and what they lack."""
        files, notes = ", ".join(map(str, self._paths)), []
        if self._unread:
            counts = ", ".join(f"{key!r} ({n:,})" for key, n in self._unread.most_common())
            notes.append(f"{files}: keys that are not read, of {self._count:,} records: {counts}")
        if self._missing:
            names = ", ".join(map(repr, sorted(self._missing)))
            notes.append(f"{files}: data.columns names {names}, which no record has")
        return notes


def _reason(error: Exception, fields: Fields) -> str:
    if not isinstance(error, KeyError):
        return str(error)
    has = ", ".join(map(repr, fields)) or "none"
    return f"key {error.args[0]!r} is missing, there is {has}; data.columns maps names"


def _records(name: Path | str) -> Iterator[tuple[str, Record]]:
    if is_hub_rows(name):
        yield from ((where, dict(row)) for where, row in hub_rows(str(name)))
        return
    path = Path(name)
    if not path.is_file():
        what = "is a folder; name the files in it" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {what}")
    refuse_unreadable(path)
    yield from parquet_records(path) if is_parquet(path) else json_records(path)


def json_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Read JSON lines or a JSON list, compressed or not; blank lines are left out.

    A list is read as a whole, lines one by one.

    Yields:
        ``file:line`` or ``file:record number``, and the object there.

    Raises:
        DataError: a line or an item is not a JSON object in UTF-8.
    """
    if starts_list(path):
        for where, item in list_items(path):
            yield where, _as_object(where, item)
        return
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", parse_line(f"{path}:{number}", line)


def starts_list(path: Path) -> bool:
    """Whether a file's first character is that of a JSON list and the next that of an object."""
    with open_bytes(path) as file:
        start = beginning(file)
    return start[:1] == b"[" and start[1:].lstrip()[:1] == b"{"


def beginning(file: IO[bytes], size: int = 4096) -> bytes:
    """Some bytes from the first that isn't blank on."""
    start = file.read(size).removeprefix(b"\xef\xbb\xbf").lstrip()
    while not start and (more := file.read(size)):
        start = more.lstrip()
    return start


def parse_line(where: str, line: bytes) -> Record:
    """Parse one line of JSON.

    Raises:
        DataError: it is not a JSON object in UTF-8.
    """
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{where}: must be UTF-8") from None
    except json.JSONDecodeError as error:
        if line.strip() == b"{":
            raise DataError(f"{where}: a record must be on one line, or in a list") from None
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; deep nesting
        raise DataError(f"{where}: not JSON that can be read: {error}") from None
    return _as_object(where, record)


def _as_object(where: str, value: object) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be a JSON object, came {type(value).__name__}")
    return value


def list_items(path: Path) -> Iterator[tuple[str, object]]:
    """Read a file that is one JSON list, as a whole.

    Yields:
        ``file:record number`` and what stands there.

    Raises:
        DataError: the file is not JSON.
    """
    with open_bytes(path) as file:
        content = file.read()
    try:
        items = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    for number, item in enumerate(items, 1):
        yield f"{path}:record {number}", item


def parquet_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Read Parquet.

    Yields:
        ``file:record number`` and the row.

    Raises:
        DataError: pyarrow is not installed, or the file is damaged.
    """
    file, number = open_parquet(path), 0
    try:
        for batch in file.iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}:record {number}", record
    except (OSError, ValueError) as error:  # pyarrow's errors about a damaged file
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: damaged after record {number}: {reason}") from None
    except (ArithmeticError, LookupError) as error:  # a date beyond Python's, a time zone unknown
        raise DataError(
            f"{path}: has a value after record {number} that Python can't hold: {error}: write the "
            "file without its column"
        ) from None


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
