"""The other processes of a run: which are gone, and what to wait for before this one ends."""

import os
import signal
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from megalite.distributed.processes import is_alive, is_stopped
from megalite.training.watchdog.status import OwnStatus, ProcessStatus
from megalite.training.watchdog.store import StatusStore

DUMP_S = 4.0  # the most that processes wait for each other's stacks
PAUSE_S = 0.05
LOOKS = 5  # at the same beat, after which silence may be a fault


class Seen(NamedTuple):
    """The last beat of a rank, when it was seen first, and the number of that look."""

    beat: int
    since: float
    look: int


class Peers:
    """The other processes, as this one knows them by their statuses and, on its machine, /proc."""

    def __init__(
        self, own: OwnStatus, statuses: StatusStore, near: Sequence[int] | None = None
    ) -> None:
        """Know nothing of them yet.

        Args:
            own: status of this process.
            statuses: of all.
            near: ranks that may be on this machine; None: all.
        """
        self._own, self._statuses, self._near = own, statuses, near
        self._seen: dict[int, Seen] = {}
        self._looks = 0

    def missing(
        self, statuses: Iterable[ProcessStatus], silence_s: float, running_s: float = 0.0
    ) -> str | None:
        """Say which of some processes is gone, or has reported nothing for ``silence_s``.

        One that this machine knows to be dead comes first, then who is silent longest. Silence
        counts in looks, too: where a crowded machine lets this process look seldom, it lets the
        others report seldom.

        Args:
            statuses: of the processes.
            silence_s: of one that is stopped, or on another machine.
            running_s: of one that runs on this machine, where /proc would tell its end; not less
                than ``silence_s``.
        """
        now = time.monotonic()
        self._looks += 1
        silent: list[tuple[float, str]] = []
        for status in statuses:
            if not status.is_running or status.rank == self._own.rank:
                continue
            is_beside = self._own.is_beside(status)
            if is_beside and not is_alive(status.pid, status.started):
                return f"{status.name()} was killed or crashed; {self._own_place()}"
            seen = self._seen.get(status.rank)
            if seen is None or seen.beat != status.beat:
                self._seen[status.rank] = Seen(status.beat, now, self._looks)
                continue
            for_s, runs = now - seen.since, is_beside and not is_stopped(status.pid)
            most_s = max(silence_s, running_s) if runs else silence_s
            if for_s > most_s and self._looks - seen.look >= LOOKS:
                why = "it runs, and can't report" if runs else "it is stopped or gone"
                silent.append((for_s, f"{status.name()} has not answered for {for_s:.0f} s: {why}"))
        return f"{max(silent)[1]}; {self._own_place()}" if silent else None

    def _own_place(self) -> str:
        """Where this process is: the other's step and phase may be out of date by now."""
        heartbeat = self._own.heartbeat
        return f"rank {self._own.rank} is in step {heartbeat.step}, {heartbeat.phase}"

    def near(self) -> list[ProcessStatus]:
        """The last statuses of the processes that may be on this machine and have not ended."""
        return self._statuses.running(self._near)

    def wait_for_stacks(self, is_reporter: bool) -> None:
        """Count this process's stacks as written, and wait until all that can have written theirs.

        torchrun ends the other processes as soon as the first has ended. The one that reports the
        fault finds out how many can, and tells the others when they have.
        """
        until = time.monotonic() + DUMP_S
        count = self._statuses.count_dump()
        if not is_reporter:
            self._statuses.wait_for_dumps(DUMP_S)
            return
        able = sum(
            not self._own.is_beside(status)
            or (is_alive(status.pid, status.started) and not is_stopped(status.pid))
            for status in self._statuses.running()
        )
        while count < able and time.monotonic() < until:
            time.sleep(PAUSE_S)
            count = self._statuses.num_dumps()
        self._statuses.end_dumps()

    def wake_stopped(self) -> None:
        """Let a stopped process of this machine write its stacks and end; kill what can't."""
        stopped = [
            status
            for status in self.near()
            if self._own.is_beside(status)
            and is_alive(status.pid, status.started)
            and is_stopped(status.pid)
        ]
        for status in stopped:
            os.kill(status.pid, signal.SIGCONT)
        until = time.monotonic() + DUMP_S
        while any(is_alive(s.pid, s.started) for s in stopped) and time.monotonic() < until:
            time.sleep(PAUSE_S)
        for status in stopped:
            if is_alive(status.pid, status.started):
                os.kill(status.pid, signal.SIGKILL)
