"""What the watchdogs of all processes share: every status, and the first fault that is found.

In a run without a fault a process asks the store for the same few words at each turn, however many
processes there are. All statuses are read by one of them, the first that finds a reason to.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta

import torch.distributed as dist

from megalite.training.watchdog.status import ProcessStatus

TURNS = 6  # looks at all statuses until they are of one time, or it takes too long
FAULT, DUMPED, ALL_DUMPED, ENDED, LOOKS = "fault", "dumped", "all dumped", "ended", "looks"


class StatusStore:
    """The last status of each process, in a store that all of them reach."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        """Look at it as process ``rank`` of ``world_size``."""
        self._store, self._rank, self._world_size = store, rank, world_size
        self._watched = 1  # how many ranks after this one

    def publish(self, status: ProcessStatus) -> None:
        """Put this process's status there."""
        self._store.set(str(self._rank), json.dumps(asdict(status)))

    def all(self) -> list[ProcessStatus]:
        """The last status of every process."""
        return self._read(range(self._world_size))

    def all_anew(self, renewal_s: float) -> list[ProcessStatus]:
        """The status of every process once each has reported again, or after ``renewal_s``.

        Together they are of one time: what one began since its last report doesn't look left out.
        """
        before = {status.rank: status.beat for status in self.all()}
        until = time.monotonic() + renewal_s
        while True:
            time.sleep(renewal_s / TURNS)
            found = self.all()
            late = [s for s in found if s.is_running and s.beat == before[s.rank]]
            if all(s.rank == self._rank for s in late) or time.monotonic() > until:
                return found

    def running(self, ranks: Sequence[int] | None = None) -> list[ProcessStatus]:
        """The last status of every process, or of some ranks, that has not ended."""
        found = self.all() if ranks is None else self._read(ranks)
        return [status for status in found if status.is_running]

    def next_running(self) -> ProcessStatus | None:
        """The status of the process that this one watches: the next rank that has not ended."""
        while self._watched < self._world_size:
            (status,) = self._read([(self._rank + self._watched) % self._world_size])
            if status.is_running:
                return status
            self._watched += 1  # for good
        return None

    def count_end(self) -> int:
        """Count this process among those that have ended; give how many have not."""
        return self._world_size - self._store.add(ENDED, 1)

    def num_running(self) -> int:
        """How many processes have not ended."""
        return self._world_size - self._store.add(ENDED, 0)

    def claims_look(self) -> bool:
        """Whether this process is the first that wants to look at all of them."""
        return self._store.add(LOOKS, 1) == 1

    def _read(self, ranks: Sequence[int]) -> list[ProcessStatus]:
        keys = [str(rank) for rank in ranks]
        if self._store.check(keys):
            return [ProcessStatus(**json.loads(text)) for text in self._store.multi_get(keys)]
        if len(keys) == 1:
            return [ProcessStatus(ranks[0])]
        return [status for rank in ranks for status in self._read([rank])]

    def count_dump(self) -> int:
        """Count this process among those that have written their stacks; give their number."""
        return self._store.add(DUMPED, 1)

    def num_dumps(self) -> int:
        """How many processes have written their stacks."""
        return self._store.add(DUMPED, 0)

    def end_dumps(self) -> None:
        """Say that all that can have written their stacks."""
        self._store.set(ALL_DUMPED, "1")

    def wait_for_dumps(self, seconds: float) -> None:
        """Wait until that is said, not longer than so many seconds."""
        with suppress(RuntimeError):  # the store's: the time is over, or the store gone
            self._store.wait([ALL_DUMPED], timedelta(seconds=seconds))


class FirstFault:
    """The place in the store for the fault that is found first."""

    def __init__(self, store: dist.Store, rank: int) -> None:
        """Look at it as process ``rank``."""
        self._store, self._rank = store, rank

    def read(self) -> str | None:
        """What was found, if something was."""
        if not self._store.check([FAULT]):
            return None
        return self._store.get(FAULT).decode().partition(" ")[2]

    def write(self, text: str) -> str | None:
        """Write a fault; None if this process's is the first, else the first.

        The rank goes with it: two processes may find the same fault in the same words.
        """
        mine = f"{self._rank} {text}"
        first = self._store.compare_set(FAULT, "", mine).decode()
        return None if first == mine else first.partition(" ")[2]
