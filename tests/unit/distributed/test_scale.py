"""What the processes of a run ask their store for is as much for each, however many they are."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from megalite import torch_private
from megalite.distributed import rendezvous
from megalite.distributed.agreement import text_of_any, text_of_node
from megalite.distributed.launch import Launch
from megalite.distributed.rendezvous import _Entries, _give_prefix, _take_prefix
from megalite.errors import DataError, RankFailure, UserError
from megalite.training.checkpoint.checking import Checkers
from megalite.training.watchdog.heartbeat import Heartbeat
from megalite.training.watchdog.status import OwnStatus
from megalite.training.watchdog.store import FirstFault, StatusStore

WAIT = timedelta(seconds=30)
AT_ONCE = 64


def as_bytes(text: str | bytes) -> bytes:
    """What a store holds: it gets bytes through a prefix, text without one."""
    return text if isinstance(text, bytes) else text.encode()


class CountingStore(dist.Store):
    """A store in this process that counts requests and bytes; many threads wait in it."""

    def __init__(self) -> None:
        super().__init__()
        self.requests, self.bytes = Counter(), 0
        self._values: dict[str, bytes] = {}
        self._set: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def _count(self, name: str, *texts: str | bytes) -> None:
        self.requests[name] += 1
        self.bytes += sum(len(text) for text in texts)

    def _put(self, key: str, value: bytes) -> None:
        self._values[key] = value
        self._set.setdefault(key, threading.Event()).set()

    def set(self, key, value):
        with self._lock:
            self._count("set", key, value)
            self._put(key, as_bytes(value))

    def get(self, key):
        with self._lock:
            there = self._set.setdefault(key, threading.Event())
        there.wait(WAIT.total_seconds())
        with self._lock:
            self._count("get", key, self._values[key])
            return self._values[key]

    def multi_get(self, keys):
        with self._lock:
            values = [self._values[key] for key in keys]
            self._count("multi_get", *keys, *values)
            return values

    def add(self, key, amount):
        with self._lock:
            self._count("add", key)
            value = int(self._values.get(key, b"0")) + amount
            self._put(key, str(value).encode())
            return value

    def compare_set(self, key, expected, desired):
        with self._lock:
            self._count("compare_set", key, desired)
            if self._values.get(key, b"") == as_bytes(expected):
                self._put(key, as_bytes(desired))
            return self._values[key]

    def check(self, keys):
        with self._lock:
            self._count("check", *keys)
            return all(key in self._values for key in keys)

    def wait(self, keys, timeout=WAIT):
        with self._lock:
            events = [self._set.setdefault(key, threading.Event()) for key in keys]
            self._count("wait", *keys)
        for event in events:
            if not event.wait(timeout.total_seconds()):
                raise dist.DistStoreError("wait timeout")


def on_all(count: int, act: Callable[[int], object]) -> list[object]:
    """What each of many processes gives, a thread for each."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(act, range(count)))


def handshake(count: int) -> CountingStore:
    """All processes of a start agree on a prefix, some of them at a time."""
    store = CountingStore()
    _Entries(store).add("asks 3 of-a-process-that-is-gone")
    with ThreadPoolExecutor(AT_ONCE + 1) as pool:
        given = pool.submit(_give_prefix, store, count, WAIT)
        taken = list(pool.map(lambda rank: _take_prefix(store, rank, WAIT), range(1, count)))
    assert set(taken) == {given.result()}
    return store


@pytest.mark.parametrize("count", [64, 4096])
def test_a_start_asks_the_store_for_the_same_few_things_for_each_process(monkeypatch, count):
    """Beside it the first process looks at its turns, by the clock, whether somebody came."""
    monkeypatch.setattr(rendezvous, "PAUSE_S", 0.001)
    store = handshake(count)
    turns = store.requests["add"] - (2 * count - 1)
    assert store.requests["set"] == 3 * count - 1
    assert store.requests["wait"] == count - 1
    of_turns = turns * (3 + AT_ONCE)  # an entry that is late is looked for again
    assert store.requests.total() <= 14 * count + of_turns
    assert store.bytes < 700 * count + 20 * of_turns


def test_a_process_that_is_killed_between_its_ticket_and_its_entry_holds_nobody_up():
    store = CountingStore()
    store.add("entries", 1)
    with ThreadPoolExecutor(1) as pool:
        given = pool.submit(_give_prefix, store, 2, WAIT)
        assert _take_prefix(store, 1, WAIT) == given.result()


def test_one_that_does_not_join_is_named_and_so_is_a_first_that_does_not_answer():
    short = timedelta(seconds=0.05)
    with pytest.raises(RankFailure, match=r"^rank 1, 2 did not join within 0 s"):
        _give_prefix(CountingStore(), 3, short)
    with pytest.raises(RankFailure, match=r"^rank 2: rank 0 did not answer within 0 s"):
        _take_prefix(CountingStore(), 2, short)


@pytest.mark.parametrize("count", [16, 256])
def test_what_one_refuses_all_hear_in_as_many_requests_for_each(monkeypatch, count):
    store = CountingStore()
    monkeypatch.setattr(torch_private, "default_store", lambda: store)

    def say(rank: int) -> str:
        return text_of_any(Launch(rank, count), "no room" if rank == 5 else "")

    assert on_all(count, say) == ["no room"] * count
    assert store.requests.total() == 5 * count + 2


@pytest.mark.parametrize("count", [16, 256])
def test_what_a_node_makes_once_its_others_are_given(monkeypatch, count):
    store, made = CountingStore(), []
    monkeypatch.setattr(torch_private, "default_store", lambda: store)

    def launched(rank: int) -> Launch:
        return Launch(rank, count, rank % 4, 4)

    def text(rank: int) -> str:
        return text_of_node(launched(rank), lambda: made.append(rank) or f"of node {rank // 4}")

    assert on_all(count, text) == [f"of node {rank // 4}" for rank in range(count)]
    assert sorted(made) == list(range(0, count, 4))
    assert store.requests.total() <= 8 * count + 1

    def own(rank: int) -> str:
        return text_of_node(launched(rank), lambda: f"of {rank}", at_once=True)

    assert on_all(count, own) == [f"of {rank}" for rank in range(count)]

    def other_order(rank: int) -> str:
        return text_of_node(Launch(rank, count, rank // (count // 2), 2), lambda: "made")

    half = count // 2
    given = on_all(count, other_order)
    assert given[:half] == ["made"] * half
    assert set(given[half:]) <= {"made", ""}


def test_what_a_node_refuses_all_refuse(monkeypatch):
    store = CountingStore()
    monkeypatch.setattr(torch_private, "default_store", lambda: store)

    def make(rank: int) -> str:
        if rank == 2:
            raise DataError("no such file")
        return ""

    def said(rank: int) -> tuple[type, str]:
        with pytest.raises(UserError) as caught:
            text_of_node(Launch(rank, 6, rank % 2, 2), lambda: make(rank))
        return caught.type, str(caught.value)

    kinds = [UserError] * 6
    kinds[2] = DataError
    assert on_all(6, said) == [(kind, "no such file") for kind in kinds]


@pytest.mark.parametrize("count", [64, 4096])
def test_watching_asks_the_store_for_the_same_few_things_for_each_process(count):
    store = CountingStore()
    heartbeat = Heartbeat()
    statuses = [StatusStore(store, rank, count) for rank in range(count)]
    for rank, seen in enumerate(statuses):
        seen.publish(OwnStatus(rank, heartbeat).now())
    store.requests.clear()
    for rank, seen in enumerate(statuses):
        assert FirstFault(store, rank).read() is None
        assert seen.next_running().rank == (rank + 1) % count
    assert store.requests.total() == 3 * count
    assert store.bytes < 2000 * count
    assert sum(seen.claims_look() for seen in statuses) == 1
    assert len(statuses[0].all()) == count
    store.requests.clear()
    left = [seen.count_end() for seen in statuses]
    assert left == list(range(count))[::-1]
    assert statuses[0].num_running() == 0
    assert store.requests.total() == count + 1


def test_a_process_looks_once_past_each_that_has_ended():
    store, count = CountingStore(), 100
    statuses = [StatusStore(store, rank, count) for rank in range(count)]
    for rank, seen in enumerate(statuses):
        own = OwnStatus(rank, Heartbeat())
        own.has_ended = rank != 99
        seen.publish(own.now())
    assert statuses[0].next_running().rank == 99
    store.requests.clear()
    assert statuses[0].next_running().rank == 99
    assert store.requests.total() == 2
    assert statuses[99].next_running() is None


def test_processes_share_the_files_of_a_checkpoint_each_once():
    files = {f"__{rank}_0.distcp": {"bytes": rank % 7, "blake2b": ""} for rank in range(4096)}
    shares = [Checkers(number, 64).share_of(files) for number in range(64)]
    assert sorted(name for share in shares for name in share) == sorted(files)
    sizes = [sum(entry["bytes"] for entry in share.values()) for share in shares]
    assert max(sizes) - min(sizes) <= 6
    text = json.dumps({"files": files})
    assert len(text) < 60 * len(files)
