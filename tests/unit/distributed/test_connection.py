"""How processes meet in a store, and a thread's own part of it."""

import socket
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta

import pytest
import torch.distributed as dist

from megalite.distributed.launch import Launch
from megalite.distributed.rendezvous import connection_of_its_own, store_of_this_start
from megalite.errors import ConfigError, RankFailure


def test_a_rank_that_is_early_at_the_second_call_waits_for_its_prefix():
    store = dist.HashStore()
    first = [connection_of_its_own(store, rank) for rank in range(2)]
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(connection_of_its_own, store, 1)
        wait([early], timeout=0.3)
        second = connection_of_its_own(store, 0), early.result(timeout=60)
    first[0].set("key", "first")
    second[0].set("key", "second")
    assert [s.get("key") for s in (first[1], second[1])] == [b"first", b"second"]


def test_where_processes_cannot_meet_is_said(monkeypatch):
    launch, time = Launch(world_size=2, local_world_size=2), timedelta(seconds=1)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="MASTER_ADDR expected, but not set: start with torchrun"):
        store_of_this_start(launch, time)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(RankFailure, match="^rank 0: no rendezvous: .*address already in use"):
            store_of_this_start(launch, time)
