"""Which other process is missing, and since when."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from torch.distributed import TCPStore

from megalite.distributed.processes import (
    boot,
    is_alive,
    is_stopped,
    pid_namespace,
    start_time,
)
from megalite.training.watchdog.heartbeat import Heartbeat
from megalite.training.watchdog.peers import LOOKS, Peers
from megalite.training.watchdog.status import OwnStatus, ProcessStatus
from megalite.training.watchdog.store import StatusStore


@pytest.fixture(scope="module")
def statuses() -> StatusStore:
    store = TCPStore("localhost", 0, is_master=True)
    return StatusStore(store, 0, 3)


@pytest.fixture
def peers(statuses) -> Peers:
    return Peers(OwnStatus(0, Heartbeat()), statuses)


def test_every_process_has_a_status_before_it_writes_one(statuses):
    own = OwnStatus(0, Heartbeat()).now()
    statuses.publish(own)
    assert statuses.all() == [own, ProcessStatus(1), ProcessStatus(2)]
    assert statuses.next_running() == ProcessStatus(1)


def test_statuses_of_one_time_wait_for_who_reported_before_the_others(statuses):
    """What one has begun since its last report doesn't look left out."""
    stored = [StatusStore(statuses._store, rank, 3) for rank in range(3)]
    early, now = (ProcessStatus(1, beat=n, collectives={"w": 4 + n}) for n in (1, 2))
    stored[1].publish(early)
    stored[2].publish(ProcessStatus(2, state="ended"))
    later = threading.Timer(0.1, stored[1].publish, [now])
    later.start()
    found = statuses.all_anew(6.0)
    later.join()
    assert found[1] == now


def said_after(looks: int, peers: Peers, statuses: list[ProcessStatus], *silence: float):
    """What the last of so many looks says."""
    return [peers.missing(statuses, *silence) for _ in range(looks)][-1]


def test_a_process_is_silent_from_its_last_new_beat_on(peers):
    first, second = (ProcessStatus(1, "elsewhere", beat=beat) for beat in (1, 2))
    assert said_after(LOOKS, peers, [first], 0.0) is None
    assert "rank 1 (elsewhere" in peers.missing([first], 0.0)
    assert peers.missing([first], 60.0) is None
    assert said_after(LOOKS, peers, [second], 0.0) is None
    assert "has not answered for" in peers.missing([second], 0.0)


def test_who_is_silent_longest_is_named(peers):
    early, late = ProcessStatus(2, "elsewhere", beat=1), ProcessStatus(1, "elsewhere", beat=1)
    assert said_after(1, peers, [early], 0.0) is None
    said = said_after(LOOKS + 1, peers, [late, early], 0.0)
    assert said.startswith("rank 2 (elsewhere")


def test_a_process_that_runs_here_is_alive_however_seldom_it_reports(peers):
    """A crowded machine keeps its watchdog from a core, not it from running."""
    own = OwnStatus(0, Heartbeat()).now()
    runs = replace(own, rank=1)
    assert said_after(LOOKS + 1, peers, [runs], 0.0, 60.0) is None
    assert "it runs, and can't report" in peers.missing([runs], 0.0)


def test_one_that_has_ended_and_this_one_are_never_missing(peers):
    ended = ProcessStatus(1, "elsewhere", state="ended")
    assert [peers.missing([one, one], 0.0) for one in (ended, ProcessStatus(0))] == [None, None]


def test_a_dead_process_of_this_machine_is_noticed_at_once(peers):
    own = OwnStatus(0, Heartbeat()).now()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = start_time(child.pid)
    status = ProcessStatus(1, own.host, child.pid, started, pid_namespace())
    assert is_alive(child.pid, started)
    assert not is_stopped(child.pid)
    assert peers.missing([status], 60.0) is None
    child.kill()
    child.wait()
    assert not is_alive(child.pid, started)
    silent = ProcessStatus(2, "elsewhere")
    said_after(LOOKS, peers, [silent], 0.0)
    said = peers.missing([silent, status], 0.0)
    assert said.startswith("rank 1 ")
    assert "was killed or crashed; rank 0 is in step 0, start" in said


def test_a_copy_of_this_machine_is_another(peers):
    """Its name is the same, and so is the number of its kernel's first namespace."""
    own = OwnStatus(0, Heartbeat()).now()
    there = replace(own, pid_namespace=own.pid_namespace.replace(boot(), "another"), pid=1 << 22)
    assert peers.missing([replace(there, rank=1)], 60.0) is None
    assert "was killed" in peers.missing([replace(own, rank=1, pid=1 << 22)], 60.0)


def test_a_process_id_that_is_used_again_is_another_process():
    assert not is_alive(os.getpid(), start_time(os.getpid()) + 1)
