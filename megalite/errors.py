"""Every error megalite raises on purpose, and the exit code each one means.

A message says where, what must hold, what came, and what to do, in one line.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class MegaliteError(Exception):
    """An error with a meaning for the command line.

    Attributes:
        exit_code: of the command.
        speaks: whether this process is the one that tells it; None: the first process does.
    """

    exit_code = 1
    speaks: bool | None = None


class UserError(MegaliteError):
    """The user's input is wrong; nothing was written half."""

    exit_code = 2


class ConfigError(UserError):
    """A config key, value or combination that can't be used."""


class DataError(UserError):
    """A data file, row or tokenizer that can't be used."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model."""


class SaveFailed(CheckpointError):
    """A checkpoint that the system could not write; another try may do.

    Attributes:
        is_forbidden: whether it is a matter of permissions, which don't change by themselves.
    """

    is_forbidden = False


class ShapeError(UserError, ValueError):
    """A tensor of the wrong shape, dtype or device."""


class KernelUnavailable(UserError):
    """An op's backend was asked for that this build or machine lacks."""


class RankFailure(MegaliteError):
    """A rank died, hung or disagreed; the message names rank, host, step and phase."""


class CrashLoop(MegaliteError):
    """Starts failed one after another at the same place; another would too."""

    exit_code = 4


class OutOfMemory(MegaliteError):
    """A process got no more memory; the message says where, how much, and what was planned."""

    speaks = True


class TransientFault(MegaliteError):
    """A step that was computed again gave another result."""

    exit_code = 5


class PersistentFault(MegaliteError):
    """A process computes another result than the others from the same samples, each time."""

    exit_code = 6


class Stopped(MegaliteError):
    """Stopped on request, with the state saved.

    Attributes:
        is_for_good: whether torchrun shall not start the run again.
    """

    exit_code = 3
    is_for_good = False


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Name ``path`` in the errors of the system that name no file, as those of a full disk do."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def tell(text: str) -> None:
    """Say something on stderr; where that can't be written, on a full disk say, it ends nothing."""
    with suppress(OSError):
        sys.stderr.write(f"megalite: {text}\n")
        sys.stderr.flush()


def write_error_file(path: str, message: str) -> None:
    """Write an error where torchrun looks for a failure's reason; nowhere if ``path`` is empty."""
    if path:
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": message, "extraInfo": extra}}, file)


def first_line(error: BaseException) -> str:
    """The first line of a library's message; of one without, its kind."""
    text = f"{error}".strip() or type(error).__name__
    return text.splitlines()[0]
