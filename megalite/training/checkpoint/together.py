"""A part of a save that fails on all processes where it fails on one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megalite.distributed.gather import told_by_any
from megalite.distributed.mesh import Axis
from megalite.training.checkpoint.write_errors import DISK_FULL, FAILURES, reason_of


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
