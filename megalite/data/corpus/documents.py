"""Documents of raw text, streamed from text files, JSON and Parquet."""

import codecs
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megalite.data.corpus.sources import SourceFile
from megalite.data.files import compression_of, is_parquet, open_bytes, open_parquet
from megalite.data.records import check_unicode, list_items, parse_line, starts_list
from megalite.errors import DataError

PIECE = 1 << 18  # characters of a text file that are read at once
OnError = Callable[[DataError], None]  # is given the error of a malformed record


@dataclass(frozen=True)
class FileRange:
    """A file or a part of it: bytes of JSON from line to line, or row groups of Parquet.

    Attributes:
        file: what is read.
        first: the first byte or row group.
        last: the one after the last; 0 is the file's end.
        stream: name of the stream whose lines are kept in the file; empty: none.
        before: lines of the stream before them.
    """

    file: SourceFile
    first: int = 0
    last: int = 0
    stream: str = ""
    before: int = 0

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.file.path


@dataclass(frozen=True)
class DocumentPiece:
    """A document's text, or a piece of it.

    Attributes:
        text: the text; a piece ends at a line's end if it has one.
        ends: whether the document ends here.
    """

    text: str
    ends: bool = True


def stop(error: DataError) -> None:
    """Stop at a malformed record."""
    raise error


def documents(
    files: Sequence[SourceFile], text_key: str, on_error: OnError = stop
) -> Iterator[DocumentPiece]:
    """Yield the documents of files, long ones in pieces; blank ones are left out.

    Raises:
        DataError: a record is malformed and ``on_error`` raises what it is given.
    """
    for file in files:
        yield from range_documents(FileRange(file), text_key, on_error)


def range_documents(
    source: FileRange, text_key: str, on_error: OnError = stop
) -> Iterator[DocumentPiece]:
    """The documents of a part of a file; see :func:`documents`."""
    if not source.file.has_rows:
        return _text_file(source.path, on_error)
    if is_parquet(source.path):
        return _parquet(source, text_key, on_error)
    if starts_list(source.path):
        return _listed(source.path, text_key, on_error)
    return _lines(source, text_key, on_error)


def file_ranges(file: SourceFile, size: int) -> Iterator[FileRange]:
    """Cut JSON lines at line ends and Parquet at row groups into ranges of about ``size`` bytes.

    Any other file stays whole.
    """
    path = file.path
    total = path.stat().st_size
    if total <= size or not file.has_rows:
        yield FileRange(file)
    elif is_parquet(path):
        groups = open_parquet(path).num_row_groups
        step = max(groups * size // total, 1)
        for first in range(0, groups, step):
            yield FileRange(file, first, min(first + step, groups))
    elif not compression_of(path) and not starts_list(path):
        first = 0
        with open(path, "rb") as opened:
            while first < total:
                opened.seek(min(first + size, total))
                opened.readline()
                yield FileRange(file, first, opened.tell())
                first = opened.tell()
    else:
        yield FileRange(file)


def _lines(source: FileRange, key: str, on_error: OnError) -> Iterator[DocumentPiece]:
    with open_bytes(source.path) as file:
        if source.first:
            file.seek(source.first)
        before, number, at = source.before if source.stream else -1, 0, source.first
        while not source.last or at < source.last:
            line = file.readline()
            if not line:
                return
            at, number = at + len(line), number + 1
            try:
                text = _text_of(parse_line("", line), key) if line.strip() else ""
            except DataError as error:
                if before < 0:  # the lines before this range are counted when one must be named
                    before = _lines_before(source)
                on_error(DataError(f"{source.stream or source.path}:{before + number}{error}"))
                continue
            if text.strip():
                yield DocumentPiece(text)


def _listed(path: Path, key: str, on_error: OnError) -> Iterator[DocumentPiece]:
    """Rows of a JSON list."""
    try:
        items = list(list_items(path))
    except DataError as error:
        on_error(error)
        return
    for where, item in items:
        try:
            text = _text_of(item, key)
        except DataError as error:
            on_error(DataError(f"{where}{error}"))
            continue
        if text.strip():
            yield DocumentPiece(text)


def _text_of(record: object, key: str) -> str:
    if not isinstance(record, dict):
        raise DataError(f": must be a JSON object, came {type(record).__name__}")
    if key not in record:
        has = ", ".join(map(repr, record)) or "nothing"
        raise DataError(f": must have text under {key!r}, has {has}; see --text_key")
    return _text(record[key], f"under {key!r}")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        came = "null" if value is None else type(value).__name__
        raise DataError(f": must have text {where}, came {came}; see --text_key")
    try:
        check_unicode(value)
    except ValueError as error:
        raise DataError(f": {error}") from None
    return value


def _lines_before(source: FileRange) -> int:
    count, left = 0, source.first
    with open(source.path, "rb") as file:
        while left and (block := file.read(min(left, PIECE))):
            count, left = count + block.count(b"\n"), left - len(block)
    return count


def _parquet(source: FileRange, key: str, on_error: OnError) -> Iterator[DocumentPiece]:
    file = open_parquet(source.path)
    if key not in file.schema_arrow.names:
        names = ", ".join(file.schema_arrow.names)
        raise DataError(f"{source.path}: has no column {key!r} but {names}; see --text_key")
    last = source.last or file.num_row_groups
    groups = range(source.first, last)
    number = sum(file.metadata.row_group(i).num_rows for i in range(source.first))
    try:
        for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=[key]):
            for value in batch.column(0).to_pylist():
                number += 1
                try:
                    text = _text(value, f"in column {key!r}")
                except DataError as error:
                    on_error(DataError(f"{source.path}:record {number}{error}"))
                    continue
                if text.strip():
                    yield DocumentPiece(text)
    except (OSError, ValueError) as error:  # pyarrow's errors about a damaged file
        reason = str(error).splitlines()[0]
        raise DataError(f"{source.path}: damaged after record {number}: {reason}") from None


def _text_file(path: Path, on_error: OnError) -> Iterator[DocumentPiece]:
    """A file as one document, in pieces; all of it is checked before the first is given."""
    try:
        _check_utf8(path)
    except DataError as error:
        on_error(error)
        return
    with open_bytes(path) as opened, io.TextIOWrapper(opened, encoding="utf-8-sig") as file:
        text = file.read(PIECE)
        if not text.strip() and len(text) < PIECE:
            return
        while following := file.read(PIECE):
            cut = text.rfind("\n") + 1 or len(text)
            yield DocumentPiece(text[:cut], ends=False)
            text = text[cut:] + following
        yield DocumentPiece(text)


def _check_utf8(path: Path) -> None:
    decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
    with open_bytes(path) as file:
        while True:
            block = file.read(PIECE)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = at - pending + error.start
                raise DataError(
                    f"{path}: must be text in UTF-8: {error.reason} at byte {place}"
                ) from None
            if not block:
                return
            at += len(block)
