"""Seconds in which a thread waits: for other processes, in collectives, or for its device."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from megalite.torch_private import wrap_waits


class _Waited(threading.local):
    """Of each thread; its nested waits count once."""

    seconds = 0.0
    depth = 0


_waited = _Waited()


def waited_s() -> float:
    """Seconds that the calling thread has waited since the first call in this process."""
    wrap_waits(counted)
    return _waited.seconds


@contextmanager
def waiting() -> Iterator[None]:
    """Count the time inside as waited."""
    started = time.perf_counter()
    _waited.depth += 1
    try:
        yield
    finally:
        _waited.depth -= 1
        if not _waited.depth:
            _waited.seconds += time.perf_counter() - started


def counted(wait: Callable[..., bool]) -> Callable[..., bool]:
    """``wait``, whose time counts as waited."""

    @functools.wraps(wait)
    def counted_wait(*arguments: object, **options: object) -> bool:
        with waiting():
            return wait(*arguments, **options)

    return counted_wait
