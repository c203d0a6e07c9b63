"""What processes that save together do as one: it fails on all of them, or the first decides."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megalite.distributed.gather import told_by_any
from megalite.distributed.mesh import Axis
from megalite.errors import CheckpointError
from megalite.training.checkpoint.write_errors import DISK_FULL, FAILURES, reason_of

Made = TypeVar("Made")


def from_first(make: Callable[[], Made], axis: Axis, folder: Path) -> Made:
    """What the first process makes, given to all; what it refuses, all refuse.

    Args:
        make: called by the first process.
        axis: the processes, whose group is of CPUs.
        folder: is named where the system names no file.

    Comm: a broadcast over ``axis``.

    Raises:
        CheckpointError: the first process raised it, or could not read or write.
    """
    made: list[Any] = [None, ""]
    if axis.rank == 0:
        try:
            made[0] = make()
        except CheckpointError as error:
            made[1] = str(error)
        except OSError as error:
            made[1] = f"{error.filename or folder}: {error.strerror}"
    if axis.group is not None:
        dist.broadcast_object_list(made, group=axis.group, group_src=0)
    if made[1]:
        raise CheckpointError(made[1])
    answer: Made = made[0]
    return answer


@contextmanager
def together(axis: Axis) -> Iterator[None]:
    """Run a part of a save that may fail on one process, so that it fails on all of them.

    Comm: as :func:`told_by_any` over ``axis``, whose group is of CPUs.

    Raises:
        OSError: it failed somewhere; a full disk before all else.
    """
    error: BaseException | None = None
    try:
        yield
    except FAILURES as failure:  # raised again, on all processes
        error = failure
    if axis.group is None:
        if error is not None:
            raise error
        return
    told = None if error is None else (getattr(error, "errno", None), reason_of(error))
    errors = told_by_any(told, axis, torch.device("cpu"))
    if errors:
        raise OSError(*min(errors, key=lambda one: one[0] not in DISK_FULL))
