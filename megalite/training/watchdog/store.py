"""What the watchdogs of all processes share: every status, and the first fault that is found."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import torch.distributed as dist

from megalite.training.watchdog.status import ProcessStatus

FAULT, DUMPED = "fault", "dumped"


class StatusStore:
    """The last status of each process, in a store that all of them reach."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        """Look at it as process ``rank`` of ``world_size``."""
        self._store, self._rank, self._world_size = store, rank, world_size

    def publish(self, status: ProcessStatus) -> None:
        """Put this process's status there."""
        self._store.set(str(self._rank), json.dumps(asdict(status)))

    def all(self) -> list[ProcessStatus]:
        """The last status of every process."""
        return self._read(range(self._world_size))

    def running(self) -> list[ProcessStatus]:
        """The last status of every process that has not ended."""
        return [status for status in self.all() if status.is_running]

    def next_running(self) -> ProcessStatus | None:
        """The status of the process that this one watches: the next rank that has not ended."""
        for other in range(self._rank + 1, self._rank + self._world_size):
            (status,) = self._read([other % self._world_size])
            if status.is_running:
                return status
        return None

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
