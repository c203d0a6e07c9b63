"""A store that only the processes of this start use.

torchrun keeps one store while it starts the processes again and again, and PyTorch's groups find in
it the addresses of processes that are gone; its count of restarts differs between nodes. So the
processes agree on a prefix of this start before they make a group.
"""

import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from megalite.distributed.launch import Launch
from megalite.errors import ConfigError, RankFailure, first_line

PAUSE_S = 0.02
ASKS, HAS = "asks", "has"


def store_of_this_start(launch: Launch, timeout: timedelta) -> dist.Store:
    """The store of torchrun under a prefix that no earlier start has used.

    Comm: each process writes a nonce, rank 0 replies to it with the prefix, and the process
    acknowledges that: some ten requests for each, however many there are.

    Raises:
        RankFailure: a process did not join in time, and rank 0 names it; or none can.
        ConfigError: the environment doesn't say where they meet.
    """
    found = rendezvous("env://", launch.rank, launch.world_size, timeout=timeout)
    try:
        store = next(found)[0]
    except ValueError as error:  # of a variable of the environment
        raise ConfigError(
            f"environment: {first_line(error)}: start with torchrun, which sets MASTER_ADDR and "
            "MASTER_PORT"
        ) from None
    except dist.DistError as error:
        failure = RankFailure(f"rank {launch.rank}: no rendezvous: {first_line(error)}")
        failure.speaks = True
        raise failure from None
    handshakes = dist.PrefixStore("handshakes", store)
    if launch.rank == 0:
        prefix = _give_prefix(handshakes, launch.world_size, timeout)
    else:
        prefix = _take_prefix(handshakes, launch.rank, timeout)
    return dist.PrefixStore(prefix, store)


def connection_of_its_own(store: dist.Store, rank: int) -> dist.Store:
    """A store over a connection of its own, for a thread whose calls must not wait for others'.

    Comm: rank 0 names the prefix in ``store``, the others read it; each counts its calls there, so
    that no rank takes the prefix of an earlier call for this one's.
    """
    key = f"connection {store.add(f'connections of {rank}', 1)}"
    if rank == 0:
        store.set(key, uuid.uuid4().hex)
    prefix = store.get(key).decode()
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if isinstance(store, dist.TCPStore):  # one client is one connection, and a lock around it
        store = dist.TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)
    return dist.PrefixStore(prefix, store)


class _Entries:
    """A list in the store that processes add to and one reads, in the order of their tickets.

    A process may be killed between its ticket and its entry, so the reader waits for none.
    """

    def __init__(self, store: dist.Store) -> None:
        self._store, self._seen = store, 0
        self._missing: list[str] = []

    def add(self, text: str) -> None:
        self._store.set(f"entry {self._store.add('entries', 1)}", text)

    def unread(self) -> Iterator[str]:
        """The entries since the last call. Comm: a word, and a few for the entries that came."""
        count = self._store.add("entries", 0)
        keys = [f"entry {number}" for number in range(self._seen + 1, count + 1)]
        self._seen, asked, self._missing = count, [*self._missing, *keys], []
        if asked and self._store.check(asked):
            yield from (text.decode() for text in self._store.multi_get(asked))
            return
        for key in asked:
            if self._store.check([key]):
                yield self._store.get(key).decode()
            else:
                self._missing.append(key)


def _give_prefix(store: dist.Store, world_size: int, timeout: timedelta) -> str:
    """Rank 0: reply to each nonce, those of earlier starts too, until all have acknowledged."""
    prefix, missing = uuid.uuid4().hex, set(range(1, world_size))
    entries, until = _Entries(store), time.monotonic() + timeout.total_seconds()
    while missing and time.monotonic() < until:
        for entry in entries.unread():
            said, rank, told = entry.split()
            if said == ASKS:
                store.set(f"reply {told}", prefix)
            elif told == prefix:
                missing.discard(int(rank))
        if missing:
            time.sleep(PAUSE_S)
    if not missing:
        return prefix
    ranks = ", ".join(map(str, sorted(missing)))
    raise RankFailure(
        f"rank {ranks} did not join within {timeout.total_seconds():.0f} s, --parallel.timeout_s: "
        "look at that process's output, and at the network between the nodes"
    )


def _take_prefix(store: dist.Store, rank: int, timeout: timedelta) -> str:
    """Any other rank: ask with a nonce, so that no reply of an earlier start is taken for ours."""
    nonce, entries = uuid.uuid4().hex, _Entries(store)
    entries.add(f"{ASKS} {rank} {nonce}")
    try:
        store.wait([f"reply {nonce}"], timeout)
    except RuntimeError as error:  # the store's
        raise RankFailure(
            f"rank {rank}: rank 0 did not answer within {timeout.total_seconds():.0f} s, "
            "--parallel.timeout_s: look at its output, and at the network between the nodes "
            f"({str(error).strip().splitlines()[0]})"
        ) from None
    prefix = store.get(f"reply {nonce}").decode()
    entries.add(f"{HAS} {rank} {prefix}")
    return prefix
