"""A file that lines are appended to, each whole or not at all, also over a full disk."""

from contextlib import suppress
from pathlib import Path


class Lines:
    """Appends lines to a file; those that the system can't write wait for the next try."""

    def __init__(self, path: Path) -> None:
        """Describe the file; nothing is opened."""
        self._path, self._waiting = path, ""

    @property
    def is_written(self) -> bool:
        """Whether no line waits."""
        return not self._waiting

    def add(self, text: str) -> str:
        """Append a line, and those that wait; says why they can't be written, or nothing."""
        self._waiting += text + "\n"
        return self.write()

    def write(self) -> str:
        """Append the lines that wait; says why they can't be written, or nothing."""
        if not self._waiting:
            return ""
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
