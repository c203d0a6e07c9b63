"""Which files of sources are read, and each as what: rows, or one document."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megalite.data.files import format_of, is_parquet, open_bytes, refuse_unreadable
from megalite.data.records import beginning, parse_line, starts_list
from megalite.errors import DataError
from megalite.files.urls import local

FileFormat = Literal["auto", "rows", "text"]
FORMAT = (
    "what a file is; auto: JSON and Parquet, by their names, hold a document in each record, and "
    "other files are one document; rows: every file holds records; text: every file is a document"
)
LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
HEAD = 8000  # bytes among which a zero byte says that a file is no text, as Git has it
SHOWN = 5  # files left out that are named


@dataclass(frozen=True)
class SourceFile:
    """A file that is read.

    Attributes:
        path: of the file.
        has_rows: whether each of its records is a document, or the file is one.
    """

    path: Path
    has_rows: bool


@dataclass(frozen=True)
class Sources:
    """The files below some sources.

    Attributes:
        files: those that are read, in a fixed order.
        left_out: the others, each with the reason.
    """

    files: list[SourceFile]
    left_out: list[str]

    def notes(self) -> list[str]:
        """What was left out, in a line; none if nothing was."""
        if not self.left_out:
            return []
        more = len(self.left_out) - SHOWN
        shown = ", ".join(self.left_out[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
        return [f"left out {len(self.left_out):,} files or folders: {shown}"]


def find_sources(sources: Sequence[str], text_key: str, as_what: FileFormat = "auto") -> Sources:
    """Every file below the sources; what is hidden or no text in a folder is left out.

    Args:
        sources: files and folders.
        text_key: of a record's text.
        as_what: how files are read.

    Raises:
        DataError: a source is missing, a folder holds no file, or a file looks like rows and would
            be read as text.
    """
    files: list[SourceFile] = []
    left_out: list[str] = []
    for source in map(Path, map(local, sources)):
        if source.is_file():
            files.append(SourceFile(source, _has_rows(source, as_what, text_key)))
        elif source.is_dir():
            before = len(files) + len(left_out)
            for path, reason in _inside(source):
                reason = reason or _no_text(path, as_what, text_key)
                if reason:
                    left_out.append(f"{path} ({reason})")
                else:
                    files.append(SourceFile(path, _has_rows(path, as_what, text_key)))
            if len(files) + len(left_out) == before:
                raise DataError(f"{source}: holds no file")
        else:
            raise DataError(f"{source}: no such file or folder")
    if not files:
        raise DataError(f"{', '.join(sources)}: holds no text; {Sources([], left_out).notes()[0]}")
    return Sources(files, left_out)


def _inside(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files below a folder, each with the reason if it is passed over by its name alone."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name.startswith("."):
            yield path, "hidden"
        elif entry.is_dir(follow_symlinks=False):
            yield from _inside(path)
        elif entry.is_dir():
            yield path, "a link to a folder"
        elif entry.is_file():
            yield path, ""
        else:
            yield path, "a link to nothing" if entry.is_symlink() else "no file"


def _no_text(path: Path, as_what: FileFormat, text_key: str) -> str:
    """Why a file of a folder is left out, or empty."""
    if as_what == "rows" or is_parquet(path):
        return ""
    with open_bytes(path) as file:
        if b"\0" in file.read(HEAD):
            return "no text"
    is_json = format_of(path) == ".json" and as_what == "auto"
    return "JSON without rows" if is_json and not _looks_like_rows(path, text_key) else ""


def _has_rows(path: Path, as_what: FileFormat, text_key: str) -> bool:
    """Whether a file is read as rows.

    Raises:
        DataError: its name and its content disagree, or no rows can be read of its format.
    """
    if as_what != "auto":
        return as_what == "rows"
    try:
        refuse_unreadable(path)
    except DataError as error:
        more = "; --format text takes it as it stands" if format_of(path) in TABLES else ""
        raise DataError(f"{error}{more}") from None
    if is_parquet(path) or format_of(path) in LINES:
        return True
    looks_like_rows = _looks_like_rows(path, text_key)
    if format_of(path) == ".json":
        if not looks_like_rows and path.stat().st_size:
            raise DataError(
                f"{path}: holds no rows: a row is an object on a line of its own or in a list, "
                f"its text under {text_key!r} (--text_key); --format text takes the file as one "
                "document"
            )
        return True
    if looks_like_rows:
        raise DataError(
            f"{path}: looks like JSON rows and is not named so: give --format rows, or a name that "
            "ends in .jsonl; --format text takes the file as one document"
        )
    return False


def _looks_like_rows(path: Path, text_key: str) -> bool:
    """Whether a file starts like a list of objects, or like lines that are one each."""
    with open_bytes(path) as file:
        if not beginning(file).startswith(b"{"):
            return starts_list(path)
    with open_bytes(path) as file:
        lines = (line for line in file if line.strip())
        try:
            found = parse_line("", next(lines, b""))
        except DataError:
            return False
        second = next(lines, b"")
    return text_key in found if not second else second.lstrip().startswith(b"{")
