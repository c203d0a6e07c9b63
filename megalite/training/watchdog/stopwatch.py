"""A process's own time in each phase of a step: what it does, not what it waits for others.

The clock on the wall can't tell a slow process: collectives make all of them as slow. So waits are
taken out (:mod:`megalite.distributed.waiting`), and what is left is computing, by the thread's
processor time, or blocked: asleep, at a disk, paging - or ready to run while other programs have
the cores, for which Linux has a count of its own.
"""

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from megalite.distributed.waiting import waited_s

OWN_PHASES = ("data", "rollout", "forward_backward", "reduce", "optimizer", "log")


class Pace(NamedTuple):
    """A process's own seconds for a step, by ``OWN_PHASES``.

    Attributes:
        computing: on a core.
        blocked: neither on a core nor waiting for other processes.
        queued: in all phases, ready to run without a core; part of what looks blocked.
    """

    computing: list[float]
    blocked: list[float]
    queued: float


class Stopwatch:
    """Adds up one thread's time by phase; see :class:`Pace`."""

    def __init__(self) -> None:
        """Begin in no phase."""
        self._phase = -1
        self._wall = self._waited = self._cpu = 0.0
        self._now: list[float] = []  # of the step under way
        self._steps: deque[list[float]] = deque(maxlen=1)
        self._queued = 0.0

    def keep(self, steps: int) -> None:
        """Keep the last steps, from here on."""
        self._steps = deque(maxlen=steps)
        self._queued = _queued_s()

    def enter(self, phase: str) -> None:
        """A phase begins; time outside of ``OWN_PHASES`` doesn't count."""
        if not self._now:
            return
        wall, waited, cpu = time.perf_counter(), waited_s(), time.thread_time()
        if self._phase >= 0:
            computing = cpu - self._cpu
            blocked = wall - self._wall - (waited - self._waited) - computing
            self._now[self._phase] += computing
            self._now[len(OWN_PHASES) + self._phase] += blocked
        self._phase = OWN_PHASES.index(phase) if phase in OWN_PHASES else -1
        self._wall, self._waited, self._cpu = wall, waited, cpu

    def begin_step(self) -> None:
        """A step begins, and the one before is whole."""
        self.enter("")
        if self._now:
            self._steps.append(self._now)
        self._now = [0.0] * (2 * len(OWN_PHASES))

    def pace(self) -> Pace:
        """The middle of the steps that are kept; they are let go."""
        queued, before = _queued_s(), self._queued
        each = max(queued - before, 0.0) / max(len(self._steps), 1)
        middle = [statistics.median(values) for values in zip(*self._steps, strict=True)]
        middle = middle or [0.0] * (2 * len(OWN_PHASES))
        self._steps.clear()
        self._queued = queued
        half = len(OWN_PHASES)
        return Pace(middle[:half], middle[half:], each)


def _queued_s() -> float:
    """Seconds that this process's threads that compute were ready without a core; 0: not known."""
    files = ["thread-self"] if torch.get_num_threads() == 1 else _tasks()
    total = 0
    for name in files:
        with suppress(OSError, IndexError, ValueError):  # no such count in this kernel; or it ended
            total += int(Path(f"/proc/{name}/schedstat").read_text().split()[1])
    return total / 1e9


def _tasks() -> Iterator[str]:
    with suppress(OSError):
        yield from (f"self/task/{path.name}" for path in Path("/proc/self/task").iterdir())
