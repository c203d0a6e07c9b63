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
from megalite.errors import RankFailure

PAUSE_S = 0.02


def store_of_this_start(launch: Launch, timeout: timedelta) -> dist.Store:
    """The store of torchrun under a prefix that no earlier start has used.

    Comm: each process writes a nonce, rank 0 replies to it with the prefix, and the process
    acknowledges that.

    Raises:
        RankFailure: a process did not join in time; rank 0 names it.
    """
    found = rendezvous("env://", launch.rank, launch.world_size, timeout=timeout)
    store = next(found)[0]
    handshakes = dist.PrefixStore("handshakes", store)
    if launch.rank == 0:
        prefix = _give_prefix(handshakes, launch.world_size, timeout)
    else:
        prefix = _take_prefix(handshakes, launch.rank, timeout)
    return dist.PrefixStore(prefix, store)


def connection_of_its_own(store: dist.Store, rank: int) -> dist.Store:
    """A store over a connection of its own, for a thread whose calls must not wait for others'.

    Comm: rank 0 names the prefix in ``store``, the others read it.
    """
    if rank == 0:
        store.set("connection", uuid.uuid4().hex)
    prefix = store.get("connection").decode()
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if isinstance(store, dist.TCPStore):  # one client is one connection, and a lock around it
        store = dist.TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)
    return dist.PrefixStore(prefix, store)


def _pauses(timeout: timedelta) -> Iterator[None]:
    until = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < until:
        yield
        time.sleep(PAUSE_S)


def _read(store: dist.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _give_prefix(store: dist.Store, world_size: int, timeout: timedelta) -> str:
    """Rank 0: reply to each nonce, those of earlier starts too, until all have acknowledged."""
    prefix = uuid.uuid4().hex
    missing, replied = set(range(1, world_size)), dict.fromkeys(range(1, world_size), "")
    for _ in _pauses(timeout):
        for rank in sorted(missing):
            nonce = _read(store, f"nonce/{rank}")
            if nonce != replied[rank]:
                store.set(f"reply/{rank}", f"{nonce} {prefix}")
                replied[rank] = nonce
            if nonce and _read(store, f"acknowledged/{rank}") == prefix:
                missing.discard(rank)
        if not missing:
            return prefix
    ranks = ", ".join(map(str, sorted(missing)))
    raise RankFailure(
        f"rank {ranks} did not join within {timeout.total_seconds():.0f} s, --parallel.timeout_s: "
        "look at that process's output, and at the network between the nodes"
    )


def _take_prefix(store: dist.Store, rank: int, timeout: timedelta) -> str:
    """Any other rank: ask with a nonce, so that no reply of an earlier start is taken for ours."""
    nonce = uuid.uuid4().hex
    store.set(f"nonce/{rank}", nonce)
    for _ in _pauses(timeout):
        asked, _, prefix = _read(store, f"reply/{rank}").partition(" ")
        if asked == nonce:
            store.set(f"acknowledged/{rank}", prefix)
            return prefix
    raise RankFailure(
        f"rank {rank}: rank 0 did not answer within {timeout.total_seconds():.0f} s, "
        "--parallel.timeout_s: look at its output, and at the network between the nodes"
    )
