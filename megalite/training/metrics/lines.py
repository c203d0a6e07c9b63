"""A file that lines are appended to, each whole or not at all, also over a full disk."""

import threading
from contextlib import suppress
from pathlib import Path


class Lines:
    """Appends lines to a file; those that the system can't write wait for the next try.

    Several threads may.
    """

    def __init__(self, path: Path) -> None:
        """Describe the file; nothing is opened."""
        self._path, self._waiting, self._lock = path, "", threading.Lock()

    @property
    def is_written(self) -> bool:
        """Whether no line waits."""
        return not self._waiting

    def add(self, text: str) -> str:
        """Append a line, and those that wait; says why they can't be written, or nothing."""
        return self.write(text + "\n")

    def write(self, more: str = "") -> str:
        """Append the lines that wait and ``more``; says why they can't be written, or nothing."""
        with self._lock:
            self._waiting += more
            return self._write() if self._waiting else ""

    def _write(self) -> str:
        try:
            with open(self._path, "ab", buffering=0) as file:
                before, data = file.tell(), self._waiting.encode()
                try:
                    while data:
                        data = data[file.write(data) :]
                except OSError:
                    with suppress(OSError):  # a device can't be cut
                        file.truncate(before)
                    raise
        except OSError as error:
            return f"{self._path}: can't be written: {error.strerror}"
        self._waiting = ""
        return ""
