"""Rows that were tokenized once, kept in files that all processes of all starts map into memory.

A store is a folder whose name is the key of :mod:`megalite.data.chat.row_source`: a file for each
array, and ``rows.json`` with the key, the types and a fingerprint of the arrays. It is written
under another name and renamed when it is whole. One process of a node finds the key and reads all
of the store to see that it still is whole; those that it tells the name map what it has read. What
can't be written or read is said, and the rows are tokenized without it.
"""

import errno
import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from megalite.data.chat.row_source import RowSource, name_of
from megalite.data.chat.tokenized import TokenizedRows
from megalite.data.hub_rows import is_hub_rows
from megalite.distributed.launch import Launch
from megalite.files.content import fingerprint

MANIFEST = "rows.json"
PARTIAL = ".partial"  # ends the name of one that isn't whole
DAY_S = 24 * 3600.0
KEPT_S = (  # for how long, by their names: what a killed process left, stores that nobody opens
    (re.compile(rf"\.[0-9a-f]{{32}}[.0-9a-f]*{re.escape(PARTIAL)}"), DAY_S),
    (re.compile("[0-9a-f]{32}"), 90 * DAY_S),
)
LONG_BYTES = 1 << 24  # of files from which on it is said that they are tokenized
OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY)
UNUSABLE = (OSError, ValueError, LookupError, TypeError)  # what reading a damaged store raises

T = TypeVar("T")


@dataclass(frozen=True)
class RowStores:
    """Where rows that were tokenized are kept.

    Attributes:
        folder: of the stores; None: nothing is kept.
        writes: whether this process makes stores that aren't there.
        speaks: whether this process says what takes long.
        names: of stores by the labels of their sources, as far as this process, or the one that
            told it, has read them whole.
    """

    folder: Path | None = None
    writes: bool = True
    speaks: bool = False
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path | None, launch: Launch) -> "RowStores":
        """The stores of a run, which the first process of each node writes."""
        return cls(folder, launch.local_rank == 0, launch.rank == 0)

    def rows(self, source: RowSource, make: Callable[[], TokenizedRows]) -> TokenizedRows:
        """The rows of some files: of their store if there is one, else as they are made.

        The notes say which.

        Raises:
            UserError: as ``make`` does; then nothing is kept.
        """
        if self.folder is None:
            return make()
        if any(map(is_hub_rows, source.paths)):
            return _noted(make(), f"{source.files}: data.cache keeps the rows of files alone")
        if (name := self.names.get(source.label)) is not None:
            with suppress(*UNUSABLE):  # it is gone meanwhile: this process looks for itself
                return _found(mapped(self.folder / name), source, self.folder / name)
        try:
            state, key = source.state(), source.key()
        except OSError:
            return make()  # which says what is wrong with the file
        place, notes = self.folder / name_of(key), []
        try:
            found = opened(place, key)
            if found is not None:
                self.names[source.label] = place.name
                return _found(found, source, place)
        except UNUSABLE as error:
            notes.append(f"{place}: can't be used: {_reason(error)}: its rows are tokenized again")
        self._announce(source, sum(size for size, _ in state))
        made = make()
        kept = self._kept(made, source, state, place, key) if self.writes else made
        return _noted(kept, *notes)

    def watched(self, records: Iterable[T]) -> Iterator[T]:
        """Records, counted on the terminal as they are tokenized."""
        if not (self.speaks and sys.stdout.isatty()):
            yield from records
            return
        from rich.progress import Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("tokenize: {task.completed:,} rows"), TimeElapsedColumn()
        with Progress(*columns, transient=True) as progress:
            yield from progress.track(records, total=None)

    def _announce(self, source: RowSource, num_bytes: int) -> None:
        if self.speaks and num_bytes >= LONG_BYTES:
            size = f"{num_bytes / 2**20:,.0f} MiB"
            print(f"{source.files}: rows of {size} are being tokenized", flush=True)  # noqa: T201

    def _kept(
        self,
        rows: TokenizedRows,
        source: RowSource,
        state: Sequence[tuple[int, int]],
        place: Path,
        key: dict[str, Any],
    ) -> TokenizedRows:
        """The rows of the store that is made of them, or themselves where it can't be made."""
        try:
            if source.state() != state:
                return _noted(rows, f"{source.files}: changed meanwhile: its rows are not kept")
            _sweep(place.parent)
            write(rows, place, key)
            if (kept := opened(place, key)) is None:
                raise FileNotFoundError(errno.ENOENT, "it is gone again")
            self.names[source.label] = place.name
        except UNUSABLE as error:
            said = f"data.cache {place.parent}: can't be written: {_reason(error)}"
            return _noted(rows, f"{said}: rows are tokenized at each start")
        size = sum(array.nbytes for array in rows.arrays.values()) / 2**20
        said = f"{source.files}: {len(rows):,} rows, tokenized once into {place} ({size:.3g} MiB)"
        return _noted(kept, said)


NOWHERE = RowStores()


def opened(place: Path, key: dict[str, Any]) -> TokenizedRows | None:
    """The rows of a store; None where there is none.

    Raises:
        OSError: it can't be read.
        ValueError, LookupError, TypeError: it isn't what was written.
    """
    if not place.exists():
        return None
    told = _told(place)
    if told["key"] != key or told["check"] != _check(place, told):
        raise ValueError("it isn't what was written")
    with suppress(OSError):
        os.utime(place)
    return mapped(place)


def mapped(place: Path) -> TokenizedRows:
    """The rows of a store, which are not read.

    Raises:
        OSError, ValueError, LookupError, TypeError: it isn't there, or files are shorter than told.
    """
    told = _told(place)
    arrays = {name: _array(place / name, *how) for name, how in told["arrays"].items()}
    return TokenizedRows(arrays, told["types"], told["notes"])


def _told(place: Path) -> dict[str, Any]:
    """What a store's ``rows.json`` says."""
    told = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(told, dict):
        raise ValueError("it isn't what was written")
    return told


def write(rows: TokenizedRows, place: Path, key: dict[str, Any]) -> None:
    """Make a store, whole or not at all; one that is whole already stays.

    Raises:
        OSError: it can't be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        partial.mkdir()
        for name, array in rows.arrays.items():
            with open(partial / name, "wb") as file:
                file.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
        arrays = {name: [a.dtype.str, list(a.shape)] for name, a in rows.arrays.items()}
        told = {"key": key, "arrays": arrays, "types": dict(rows.types), "notes": rows.notes}
        told |= {"check": _check(partial, told)}
        (partial / MANIFEST).write_text(json.dumps(told), encoding="utf-8")
        _put(partial, place, key)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, place: Path, key: dict[str, Any]) -> None:
    """Give a store its name, unless another process was faster; a damaged one makes way."""
    try:
        partial.rename(place)
        return
    except OSError as error:
        if error.errno not in OCCUPIED:
            raise
    with suppress(*UNUSABLE):
        opened(place, key)
        return
    aside = partial.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    place.rename(aside)
    partial.rename(place)
    shutil.rmtree(aside, ignore_errors=True)


def _array(file: Path, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    """An array of a file, mapped into memory; nothing can be mapped of an empty one."""
    if not all(shape):
        return np.zeros(shape, dtype)
    return np.asarray(np.memmap(file, np.dtype(dtype), mode="r", shape=tuple(shape)))


def _check(folder: Path, told: dict[str, Any]) -> str:
    """A fingerprint of the arrays' files and of what is told of them."""
    text = json.dumps({name: what for name, what in told.items() if name != "check"})
    return fingerprint([folder / name for name in told["arrays"]], [text], whole=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left, and stores that nobody has opened for long."""
    for path in folder.glob("*") if folder.is_dir() else ():
        with suppress(OSError):
            kept_s = next((seconds for name, seconds in KEPT_S if name.fullmatch(path.name)), None)
            if kept_s is not None and time.time() - path.stat().st_mtime > kept_s:
                shutil.rmtree(path, ignore_errors=True)


def _found(rows: TokenizedRows, source: RowSource, place: Path) -> TokenizedRows:
    """Rows that were in a store, with the note that says so."""
    return _noted(rows, f"{source.files}: {len(rows):,} rows, tokenized before, from {place}")


def _noted(rows: TokenizedRows, *notes: str) -> TokenizedRows:
    """Rows, with what is to be said of them in front of what their files have said."""
    return replace(rows, notes=[*notes, *rows.notes])


def _reason(error: Exception) -> str:
    told = getattr(error, "strerror", None) or str(error)
    return told.partition("\n")[0] or type(error).__name__
