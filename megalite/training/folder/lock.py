"""One run at a time writes into a folder: a lock that the kernel frees, and a beat beside it.

The lock is the kernel's (flock) and ends with the process that holds it, however that ends. It is
also seen from other nodes where the file system carries it, and where it doesn't, the file's text
tells: its holder changes it every few seconds, so one that stands still is of a node that is gone.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from megalite.distributed.processes import boot
from megalite.errors import ConfigError

NAME = ".lock"
WIDTH = 512  # bytes of the file, whatever it says
BEAT_S = 5.0
SILENT_BEATS = 3  # a holder elsewhere that doesn't change its text for so long is gone
PATIENCE_S = 2.0  # for one that is just ending
SEEN_S = 10.0  # until what one node writes is seen from another
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderLock:
    """The right to write into a run's folder; one process has it.

    Attributes:
        nonce: that is in the lock's file while this process holds it.
    """

    _held: "dict[Path, FolderLock]" = {}  # of this process

    def __init__(self, folder: Path, beat_s: float = BEAT_S) -> None:
        """Describe the lock of ``folder``, which is there already.

        Args:
            folder: of a run.
            beat_s: seconds between two changes of the file's text.
        """
        self.folder, self.nonce = folder, uuid.uuid4().hex
        self.is_in_use = False
        self._path, self._beat_s = folder.resolve() / NAME, beat_s
        self._file: int | None = None
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ConfigError: another run has it; it says which.
            OSError: the folder can't be written.
        """
        before = self._held.get(self._path)
        if before is not None and not before.is_in_use:
            before.release()  # a run of this process that was set up and never begun
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_kernels = self._flock(file)
            self._wait_for_other_nodes(is_kernels)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        self._held[self._path] = self
        self._write(0)
        self._thread = threading.Thread(target=self._beat, name="folder's lock", daemon=True)
        self._thread.start()

    def _flock(self, file: int) -> bool:
        """Take the kernel's lock; whether the file system has such locks."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > until:
                    raise self._refusal() from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                return False
            time.sleep(0.1)

    def _wait_for_other_nodes(self, is_kernels: bool) -> None:
        """Watch a holder that this node's kernel may not know of, whether it still beats."""
        first = self._read()
        holder = _parsed(first)
        if not holder or (is_kernels and holder.get("boot") == boot()):
            return
        until = time.monotonic() + SILENT_BEATS * float(holder.get("beat_s", self._beat_s))
        while time.monotonic() < until:
            time.sleep(min(self._beat_s, 0.5))
            if self._read() not in (first, ""):
                raise self._refusal()

    def _refusal(self) -> ConfigError:
        holder = _parsed(self._read())
        who = f" ({holder['host']}, process {holder['pid']})" if holder else ""
        return ConfigError(
            f"--run.folder {self.folder}: another run{who} is writing there: wait until it has "
            "ended, stop it, or give this run a folder of its own"
        )

    def _read(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def _write(self, beat: int) -> None:
        content = {"host": socket.gethostname(), "pid": os.getpid(), "boot": boot()}
        content |= {"nonce": self.nonce, "beat": beat, "beat_s": self._beat_s}
        self._replace(json.dumps(content))

    def _replace(self, text: str) -> None:
        if self._file is None:
            return
        try:
            write_whole(self._file, text)
        except OSError:
            return  # a full disk; the kernel's lock holds

    def _beat(self) -> None:
        beat = 0
        while not self._is_over.wait(self._beat_s):
            beat += 1
            self._write(beat)

    def release(self) -> None:
        """Give the lock back, if this process has it."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
        if self._file is not None:
            self._replace("")
            os.close(self._file)
            self._file = None
        if self._held.get(self._path) is self:
            del self._held[self._path]


def write_whole(file: int, text: str) -> None:
    """Replace a lock's text by one write of the same length, so that none reads half of it.

    Args:
        file: descriptor, open to write and not to append, where every write goes to the end.
        text: up to ``WIDTH`` bytes, padded with spaces.

    Raises:
        OSError: the file can't be written.
    """
    os.pwrite(file, text.encode().ljust(WIDTH), 0)


def shows(folder: Path, nonce: str) -> bool:
    """Whether the lock of a folder that another process made is in this process's folder too."""
    until = time.monotonic() + SEEN_S
    while True:
        try:
            text = (folder / NAME).read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        if nonce in text:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.05)


def _parsed(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) and {"host", "pid"} <= content.keys() else {}
