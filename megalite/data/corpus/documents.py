"""Documents of raw text, streamed from folders of text, JSONL and Parquet files."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megalite.data.records import check_unicode, open_parquet, parse_line
from megalite.errors import DataError

JSONL = (".jsonl", ".ndjson")
PIECE = 1 << 18  # characters of a text file that are read at once
OnError = Callable[[DataError], None]  # is given the error of a malformed record


@dataclass(frozen=True)
class FileRange:
    """A file or a part of it: bytes of JSONL from line to line, or row groups of Parquet.

    Attributes:
        path: of the file.
        first: the first byte or row group.
        last: the one after the last; 0 is the file's end.
    """

    path: Path
    first: int = 0
    last: int = 0


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


def files(sources: Sequence[str]) -> list[Path]:
    """Every file below the sources, in a fixed order.

    Raises:
        DataError: a source is missing, or a folder holds no file.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(path for path in source.rglob("*") if path.is_file())
            if not inside:
                raise DataError(f"{source}: holds no file")
            found += inside
        elif source.is_file():
            found.append(source)
        else:
            raise DataError(f"{source}: no such file or folder")
    return found


def documents(
    sources: Sequence[str], text_key: str, on_error: OnError = stop
) -> Iterator[DocumentPiece]:
    """Yield the documents of files and folders, long ones in pieces; blank ones are left out.

    A record of JSONL or Parquet is a document, and so is any other file as a whole.

    Raises:
        DataError: a record is malformed and ``on_error`` raises what it is given.
    """
    for path in files(sources):
        yield from range_documents(FileRange(path), text_key, on_error)


def range_documents(
    source: FileRange, text_key: str, on_error: OnError = stop
) -> Iterator[DocumentPiece]:
    """The documents of a part of a file; see :func:`documents`."""
    if source.path.suffix in JSONL:
        return _jsonl(source, text_key, on_error)
    if source.path.suffix == ".parquet":
        return _parquet(source, text_key, on_error)
    return _text_file(source.path, on_error)


def file_ranges(path: Path, size: int) -> Iterator[FileRange]:
    """Cut JSONL at line ends and Parquet at row groups into ranges of about ``size`` bytes.

    Any other file stays whole.
    """
    total = path.stat().st_size
    if total <= size:
        yield FileRange(path)
    elif path.suffix in JSONL:
        first = 0
        with open(path, "rb") as file:
            while first < total:
                file.seek(min(first + size, total))
                file.readline()
                yield FileRange(path, first, file.tell())
                first = file.tell()
    elif path.suffix == ".parquet":
        groups = open_parquet(path).num_row_groups
        step = max(groups * size // total, 1)
        for first in range(0, groups, step):
            yield FileRange(path, first, min(first + step, groups))
    else:
        yield FileRange(path)


def _jsonl(source: FileRange, key: str, on_error: OnError) -> Iterator[DocumentPiece]:
    with open(source.path, "rb") as file:
        file.seek(source.first)
        before, number, at = -1, 0, source.first
        while not source.last or at < source.last:
            line = file.readline()
            if not line:
                return
            at, number = at + len(line), number + 1
            try:
                value = parse_line("", line).get(key) if line.strip() else ""
                text = _text(value, f"text under {key!r}")
            except DataError as error:
                if before < 0:  # the lines before this range are counted when one must be named
                    before = _lines_before(source)
                on_error(DataError(f"{source.path}:{before + number}{error}"))
                continue
            if text.strip():
                yield DocumentPiece(text)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f": must have {what}; see --text_key")
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
                    text = _text(value, f"text in column {key!r}")
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
    with open(path, encoding="utf-8-sig") as file:
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
    with open(path, "rb") as file:
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
