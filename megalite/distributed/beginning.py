"""How the time from a process's start to the end of its first step is spent, part by part."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from megalite.distributed.processes import start_time

IMPORTS, DATA, PROCESSES, MODEL, WEIGHTS = "imports", "data", "processes", "model", "weights"
EVALUATION, STEP = "evaluation", "step"
PARTS = (IMPORTS, DATA, PROCESSES, MODEL, WEIGHTS, EVALUATION, STEP)


def age_s() -> float:
    """Seconds since this process started; 0 where the system doesn't tell."""
    ticks = start_time(os.getpid())
    if not ticks:
        return 0.0
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"), 0.0)


class Beginning:
    """Adds up the seconds of each of ``PARTS``, one after another, until a first step has ended."""

    def __init__(self) -> None:
        """Count nothing yet."""
        self._part, self._since = "", 0.0
        self._seconds: dict[str, float] = {}

    def _begin(self, part: str, since: float) -> None:
        self._part, self._since, self._seconds = part, since, dict.fromkeys(PARTS, 0.0)

    def process_started(self, seconds_ago: float) -> None:
        """The process started so long ago, and has imported since."""
        self._begin(IMPORTS, time.perf_counter() - seconds_ago)

    def run_started(self) -> None:
        """A run begins, by what it reads; imports before it count if they were counted."""
        if self._part == IMPORTS:
            self.enter(DATA)
        else:
            self._begin(DATA, time.perf_counter())

    def enter(self, part: str) -> None:
        """A part begins; nothing happens behind the first step."""
        if self._part:
            now = time.perf_counter()
            self._seconds[self._part] += now - self._since
            self._part, self._since = part, now

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """A part within the one under way, which goes on behind the block."""
        outer = self._part
        self.enter(part)
        yield
        self.enter(outer)

    def end(self) -> dict[str, float]:
        """The first step has ended: seconds by part; empty if that was before, or none count."""
        if not self._part:
            return {}
        self.enter("")
        return self._seconds
