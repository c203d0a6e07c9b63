"""Open a run's folder: it can be written, all processes see it, no other run is in it."""

import errno
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megalite.distributed.agreement import text_of_any, text_of_first
from megalite.distributed.launch import Launch
from megalite.errors import ConfigError, DataError
from megalite.training.folder.lock import FolderLock, shows

OWN_FILES = ("log.txt", "metrics.jsonl", "config.toml", "samples.jsonl")


class RunFolder:
    """A run's folder, which this process writes into or sees.

    Attributes:
        path: of the folder.
        launch: this process among the run's.
    """

    def __init__(self, path: Path | str, launch: Launch) -> None:
        """Describe the folder as this process sees it."""
        self.path, self.launch = Path(path), launch
        self._lock: FolderLock | None = None

    def open(self, check: Callable[[Path], None]) -> None:
        """Make the folder and take it for this run, until :meth:`release`.

        Comm: a few words of each process through the store.

        Args:
            check: refuses a folder of another run; the first process calls it with the folder,
                before anything is written.

        Raises:
            UserError: the folder can't be written, is in use, is another run's, or is not the same
                on all processes.
        """
        try:
            nonce = text_of_first(self.launch, lambda: self._take(check))
            self._check_shared(nonce)
        except BaseException:
            self.release()
            raise

    def _take(self, check: Callable[[Path], None]) -> str:
        """The first process's part; gives what the lock shows."""
        check(self.path)
        self._check_places()
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self.path)
            lock.acquire()
            self._lock = lock
            self._try_writing()
        return lock.nonce

    def _check_places(self) -> None:
        """Refuse files, and links to nothing, where folders must be."""
        for path in (self.path, self.path / "checkpoints"):
            if path.is_symlink() and not path.exists():
                raise DataError(
                    f"--run.folder {self.path}: {path} is a link to {os.readlink(path)}, which is "
                    "not there: make that folder, or mount it"
                )
            if path.exists() and not path.is_dir():
                raise DataError(f"--run.folder {self.path}: {path} is a file: it must be a folder")

    def _check_shared(self, nonce: str) -> None:
        """Find out whether this is one folder for all processes, and all may write into it."""
        said = ""
        if self.launch.rank > 0 and not shows(self.path, nonce):
            said = (
                f"--run.folder {self.path}: rank {self.launch.rank} ({socket.gethostname()}) "
                f"doesn't see there, in {self.path.absolute()}, what rank 0 has written: it must "
                "be one folder for all processes, on storage that all nodes share"
            )
        elif self.launch.rank > 0:
            try:
                with self._writing():
                    self._try_writing()
            except DataError as error:
                said = f"rank {self.launch.rank} ({socket.gethostname()}): {error}"
        found = text_of_any(self.launch, said)
        if found:
            raise ConfigError(found)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self.path
            raise DataError(
                f"--run.folder {self.path}: {where} can't be written: {error.strerror}"
            ) from None

    def _try_writing(self) -> None:
        """Write a file where checkpoints are, and see that what is there may be changed."""
        checkpoints = self.path / "checkpoints"
        place = checkpoints if checkpoints.is_dir() else self.path
        try:
            with tempfile.NamedTemporaryFile(dir=place, prefix=".probe-") as file:
                file.write(b"probe")
                file.flush()
        except OSError as error:
            error.filename = str(place)
            raise
        for name in OWN_FILES:
            file_there = self.path / name
            if file_there.exists() and not os.access(file_there, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file_there))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A run's time in the folder, which is given back at its end."""
        if self._lock is not None:
            self._lock.is_in_use = True
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Let other runs in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
