"""A store that only the processes of this start use.

torchrun keeps one store while it starts the processes again and again, and PyTorch's groups find in
it the addresses of processes that are gone; its count of restarts differs between nodes. So the
processes agree on a name of this start before they make a group.
"""

import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from megalite.distributed.launch import Launch
from megalite.errors import RankFailure

PAUSE_S = 0.02


def store_of_this_start(launch: Launch, timeout: timedelta) -> dist.Store:
    """The store of torchrun under a prefix that no earlier start has used.

    Comm: each process writes a word that only it knows, and rank 0 answers it with the name.

    Raises:
        RankFailure: a process did not come in time; rank 0 names it.
    """
    found = rendezvous("env://", launch.rank, launch.world_size, timeout=timeout)
    store = next(found)[0]
    hall = dist.PrefixStore("starts", store)
    if launch.rank == 0:
        name = _welcome(hall, launch.world_size, timeout)
    else:
        name = _join(hall, launch.rank, timeout)
    return dist.PrefixStore(name, store)


def connection_of_its_own(store: dist.Store, rank: int) -> dist.Store:
    """The processes' store for one thread more: a call here waits for no call on ``store``.

    Comm: rank 0 names the prefix in ``store``, the others read it.
    """
    if rank == 0:
        store.set("connection", uuid.uuid4().hex)
    name = store.get("connection").decode()
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if isinstance(store, dist.TCPStore):  # one client is one connection, and a lock around it
        store = dist.TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)
    return dist.PrefixStore(name, store)


def _pauses(timeout: timedelta) -> Iterator[None]:
    until = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < until:
        yield
        time.sleep(PAUSE_S)


def _read(hall: dist.Store, key: str) -> str:
    return hall.get(key).decode() if hall.check([key]) else ""


def _welcome(hall: dist.Store, world_size: int, timeout: timedelta) -> str:
    """Rank 0: answer each word, those that earlier starts left too, until all have thanked."""
    name = uuid.uuid4().hex
    missing, answered = set(range(1, world_size)), dict.fromkeys(range(1, world_size), "")
    for _ in _pauses(timeout):
        for rank in sorted(missing):
            word = _read(hall, f"word of {rank}")
            if word != answered[rank]:
                hall.set(f"answer to {rank}", f"{word} {name}")
                answered[rank] = word
            if word and _read(hall, f"thanks of {rank}") == name:
                missing.discard(rank)
        if not missing:
            return name
    ranks = ", ".join(map(str, sorted(missing)))
    raise RankFailure(
        f"rank {ranks} did not come within {timeout.total_seconds():.0f} s, --parallel.timeout_s: "
        "look at what that process said, and at the network between the nodes"
    )


def _join(hall: dist.Store, rank: int, timeout: timedelta) -> str:
    word = uuid.uuid4().hex
    hall.set(f"word of {rank}", word)
    for _ in _pauses(timeout):
        said, _, name = _read(hall, f"answer to {rank}").partition(" ")
        if said == word:
            hall.set(f"thanks of {rank}", name)
            return name
    raise RankFailure(
        f"rank {rank}: rank 0 did not answer within {timeout.total_seconds():.0f} s, "
        "--parallel.timeout_s: look at what it said, and at the network between the nodes"
    )
