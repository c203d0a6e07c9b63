"""Copies of files that are elsewhere: whole, of which version, and what is in them.

Beside the copies, below ``versions``, each has a note with its size, its version there and its
fingerprint, written when the copy is whole; a copy without one, or another than it says, is none.
"""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megalite.files.content import fingerprint
from megalite.files.urls import cache


@dataclass(frozen=True)
class Elsewhere:
    """A file that is elsewhere.

    Attributes:
        path: there.
        place: of its copy.
        size: in bytes; None where it isn't told.
        version: what another version of it would have otherwise; empty where nothing is told.
    """

    path: str
    place: Path
    size: int | None
    version: str

    def has_copy(self) -> bool:
        """Whether its copy is whole and of this version."""
        note = _note(self.place)
        same = {"version": self.version} | ({} if self.size is None else {"size": self.size})
        return all(note.get(key) == value for key, value in same.items()) and is_whole(self.place)

    def copy(self, get: Callable[[str, str], object]) -> None:
        """Make the copy; a reader of an earlier one keeps what it has opened.

        Args:
            get: fetches a path there to a file here.

        Raises:
            OSError: fewer bytes came, or the copy can't be written.
        """
        folder = self.place.parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=folder)
        os.close(handle)
        partial = Path(name)
        try:
            get(self.path, name)
            size = partial.stat().st_size
            if self.size not in (None, size):
                raise OSError(f"{size} of its {self.size} bytes came")
            _note_path(self.place).unlink(missing_ok=True)
            partial.replace(self.place)
        finally:
            partial.unlink(missing_ok=True)
        note = {"size": size, "version": self.version, "content": fingerprint([self.place])}
        write(_note_path(self.place), json.dumps(note))


def is_whole(place: Path) -> bool:
    """Whether a copy is what came."""
    note = _note(place)
    try:
        return note.get("content") == fingerprint([place])
    except OSError:
        return False


def drop(place: Path) -> None:
    """Remove a copy of what is no longer there."""
    for path in (place, _note_path(place)):
        path.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _note_path(place: Path) -> Path:
    return cache() / "versions" / f"{place.relative_to(cache() / 'files')}.json"


def _note(place: Path) -> dict[str, object]:
    try:
        found = json.loads(_note_path(place).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
