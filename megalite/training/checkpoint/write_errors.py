"""Why a checkpoint could not be written, in the system's words, and what to do about it."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
FAILURES = (Exception, CheckpointException)  # PyTorch's is no Exception
PROBE_BYTES = 1 << 20


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Raise the system's error in place of PyTorch's, which counts bytes where a disk is full."""
    try:
        yield
    except OSError:
        raise
    except FAILURES as error:
        found = _system_error_in(error) or _system_error_of_writing(folder)
        if found is None:
            raise
        raise found from None


def _system_error_in(error: BaseException) -> OSError | None:
    """The system's error that PyTorch has wrapped as a process's failure, or met before its own."""
    failures = error.failures.values() if isinstance(error, CheckpointException) else ()
    chain: list[BaseException | None] = [error, *(failure for failure, _ in failures)]
    while chain:
        found = chain.pop()
        if isinstance(found, OSError) and found.errno is not None:
            return found
        if found is not None:
            chain += [found.__cause__, found.__context__]
    return None


def _system_error_of_writing(folder: Path) -> OSError | None:
    """What the system says of one more file there: PyTorch's writer keeps that to itself."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def reason_of(error: BaseException) -> str:
    """A failure in a line."""
    said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    path = getattr(error, "filename", None)
    return f"{path}: {said}" if path and error_number(error) in FORBIDDEN else said.splitlines()[-1]


def error_number(error: BaseException) -> int | None:
    """The system's number of a failure, if it is the system's."""
    return getattr(error, "errno", None)


def advice_on(error: BaseException) -> str:
    """What to do about a failure."""
    number = error_number(error)
    if number in DISK_FULL:
        return "free some space"
    if number in FORBIDDEN:
        return "get the permission to write there"
    return "see what is wrong there"
