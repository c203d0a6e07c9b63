"""Documents of raw text: folders of files, text, JSONL and Parquet, streamed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megalite.data.formats import parse_line
from megalite.errors import DataError

JSONL = (".jsonl", ".ndjson")


@dataclass
class Skipped:
    """Counts and names malformed rows instead of stopping at the first.

    Attributes:
        limit: how many are named.
        count: how many there were.
        named: the messages of the first ``limit``.
    """

    limit: int = 10
    count: int = 0
    named: list[str] = field(default_factory=list)

    def __call__(self, error: DataError) -> None:
        """Take note of one."""
        self.count += 1
        if len(self.named) < self.limit:
            self.named.append(str(error))


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


def documents(
    sources: Sequence[str], text_key: str, on_error: Callable[[DataError], None] = stop
) -> Iterator[tuple[str, str]]:
    """Yield where each document comes from and its text; blank ones are left out.

    A JSONL line or Parquet row is a document, and so is any other file as a whole.

    Raises:
        DataError: a row is malformed and ``on_error`` raises what it is given.
    """
    for path in files(sources):
        yield from file_documents(path, text_key, on_error)


def file_documents(
    path: Path, text_key: str, on_error: Callable[[DataError], None] = stop
) -> Iterator[tuple[str, str]]:
    """The documents of one file; see :func:`documents`."""
    if path.suffix in JSONL:
        rows = _jsonl_texts(path, text_key, on_error)
    elif path.suffix == ".parquet":
        rows = _parquet_texts(path, text_key)
    else:
        rows = _whole(path, on_error)
    for where, text in rows:
        if text.strip():
            yield where, text


def _jsonl_texts(path: Path, key: str, on_error) -> Iterator[tuple[str, str]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                text = parse_line(where, line).get(key)
                if not isinstance(text, str):
                    raise DataError(f"{where}: must have text under {key!r}; see --text_key")
            except DataError as error:
                on_error(error)
                continue
            yield where, text


def _parquet_texts(path: Path, key: str) -> Iterator[tuple[str, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from None
    if key not in file.schema_arrow.names:
        names = ", ".join(file.schema_arrow.names)
        raise DataError(f"{path}: has no column {key!r} but {names}; see --text_key")
    number = 0
    for batch in file.iter_batches(batch_size=256, columns=[key]):
        for text in batch.column(0).to_pylist():
            yield f"{path}:row {number}", text or ""
            number += 1


def _whole(path: Path, on_error) -> Iterator[tuple[str, str]]:
    try:
        yield str(path), path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        on_error(DataError(f"{path}: must be text in UTF-8: {error.reason} at byte {error.start}"))
