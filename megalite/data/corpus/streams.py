"""Documents that are read once, as they come: lines of the standard input, rows of a dataset."""

import json
import sys
from collections.abc import Iterable, Iterator

from megalite.data.hub_rows import hub_rows, is_hub_rows
from megalite.errors import DataError

STANDARD_INPUT = "-"


def is_stream(name: str) -> bool:
    """Whether a source is one of these."""
    return name == STANDARD_INPUT or is_hub_rows(name)


def stream_lines(name: str, text_key: str) -> Iterator[bytes]:
    """The lines of a stream, each a record in JSON with a document's text under ``text_key``.

    Raises:
        DataError: a dataset can't be read, or has no such column.
    """
    if name == STANDARD_INPUT:
        yield from sys.stdin.buffer
        return
    for where, row in hub_rows(name, streaming=True):
        if text_key not in row:
            names = ", ".join(map(repr, row))
            raise DataError(f"{where}: has no column {text_key!r} but {names}; see --text_key")
        yield json.dumps({text_key: row[text_key]}).encode() + b"\n"


def chunks(lines: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Lines in lists of about ``size`` bytes."""
    held: list[bytes] = []
    filled = 0
    for line in lines:
        held.append(line)
        filled += len(line)
        if filled >= size:
            yield held
            held, filled = [], 0
    if held:
        yield held
