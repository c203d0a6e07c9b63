"""Documents of raw text: folders of files, text, JSONL and Parquet, streamed."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalite.data.formats import check_unicode, open_parquet, parse_line
from megalite.errors import DataError

JSONL = (".jsonl", ".ndjson")
PIECE = 1 << 18  # characters of a text file that are read at once
OnError = Callable[[DataError], None]


@dataclass(frozen=True)
class Span:
    """A whole file, or a part of one: bytes of JSONL that end at lines, row groups of Parquet.

    Attributes:
        path: of the file.
        first: where the part begins.
        last: where it ends; 0 is the whole file.
    """

    path: Path
    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class Piece:
    """Text of a document.

    Attributes:
        text: all of it, or a part that ends at a line's end.
        ends: whether the document ends here.
    """

    text: str
    ends: bool = True


def stop(error: DataError) -> None:
    """Stop at a malformed row."""
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


def documents(sources: Sequence[str], text_key: str, on_error: OnError = stop) -> Iterator[Piece]:
    """Yield the documents of files and folders, long ones in pieces; blank ones are left out.

    A JSONL line or Parquet row is a document, and so is any other file as a whole.

    Raises:
        DataError: a row is malformed and ``on_error`` raises what it is given.
    """
    for path in files(sources):
        yield from span_documents(Span(path), text_key, on_error)


def span_documents(span: Span, text_key: str, on_error: OnError = stop) -> Iterator[Piece]:
    """The documents of a part of a file; see :func:`documents`."""
    if span.path.suffix in JSONL:
        return _jsonl(span, text_key, on_error)
    if span.path.suffix == ".parquet":
        return _parquet(span, text_key, on_error)
    return _text_file(span.path, on_error)


def spans(path: Path, size: int) -> Iterator[Span]:
    """Cut a JSONL file at line ends and a Parquet file at row groups into parts of ``size`` bytes.

    Any other file stays whole.
    """
    total = path.stat().st_size
    if total <= size:
        yield Span(path)
    elif path.suffix in JSONL:
        first = 0
        with open(path, "rb") as file:
            while first < total:
                file.seek(min(first + size, total))
                file.readline()
                yield Span(path, first, file.tell())
                first = file.tell()
    elif path.suffix == ".parquet":
        groups = open_parquet(path).num_row_groups
        step = max(groups * size // total, 1)
        for first in range(0, groups, step):
            yield Span(path, first, min(first + step, groups))
    else:
        yield Span(path)


def _jsonl(span: Span, key: str, on_error: OnError) -> Iterator[Piece]:
    with open(span.path, "rb") as file:
        file.seek(span.first)
        before, number, at = -1, 0, span.first
        while not span.last or at < span.last:
            line = file.readline()
            if not line:
                return
            at, number = at + len(line), number + 1
            try:
                value = parse_line("", line).get(key) if line.strip() else ""
                text = _text(value, f"text under {key!r}")
            except DataError as error:
                if before < 0:  # lines of the file before this part: counted only if one is named
                    before = _lines_before(span)
                on_error(DataError(f"{span.path}:{before + number}{error}"))
                continue
            if text.strip():
                yield Piece(text)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f": must have {what}; see --text_key")
    try:
        check_unicode(value)
    except ValueError as error:
        raise DataError(f": {error}") from None
    return value


def _lines_before(span: Span) -> int:
    count, left = 0, span.first
    with open(span.path, "rb") as file:
        while left and (block := file.read(min(left, PIECE))):
            count, left = count + block.count(b"\n"), left - len(block)
    return count


def _parquet(span: Span, key: str, on_error: OnError) -> Iterator[Piece]:
    file = open_parquet(span.path)
    if key not in file.schema_arrow.names:
        names = ", ".join(file.schema_arrow.names)
        raise DataError(f"{span.path}: has no column {key!r} but {names}; see --text_key")
    last = span.last or file.num_row_groups
    groups = range(span.first, last)
    number = sum(file.metadata.row_group(i).num_rows for i in range(span.first))
    try:
        for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=[key]):
            for value in batch.column(0).to_pylist():
                number += 1
                try:
                    text = _text(value, f"text in column {key!r}")
                except DataError as error:
                    on_error(DataError(f"{span.path}:row {number}{error}"))
                    continue
                if text.strip():
                    yield Piece(text)
    except (OSError, ValueError) as error:  # pyarrow's errors about a damaged file
        reason = str(error).splitlines()[0]
        raise DataError(f"{span.path}: damaged behind row {number}: {reason}") from None


def _text_file(path: Path, on_error: OnError) -> Iterator[Piece]:
    """A file as one document, in pieces that end at line ends; it is checked before any of it."""
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
            yield Piece(text[:cut], ends=False)
            text = text[cut:] + following
        yield Piece(text)


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
