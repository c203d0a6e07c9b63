"""Which other process is missing, and since when."""

import os
import subprocess
import sys

import pytest
from torch.distributed import TCPStore

from megalite.distributed.processes import is_alive, is_stopped, pid_namespace, start_time
from megalite.training.watchdog.heartbeat import Heartbeat
from megalite.training.watchdog.peers import Peers
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


def test_a_process_is_silent_from_its_last_new_beat_on(peers):
    first, second = (ProcessStatus(1, "elsewhere", beat=beat) for beat in (1, 2))
    assert peers.missing([first], 0.0) is None
    assert "rank 1 (elsewhere" in peers.missing([first], 0.0)
    assert peers.missing([first], 60.0) is None
    assert peers.missing([second], 0.0) is None
    assert "has not answered for" in peers.missing([second], 0.0)


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
    assert "was killed or crashed; rank 0 is in step 0, start" in peers.missing([status], 60.0)


def test_a_process_id_that_is_used_again_is_another_process():
    assert not is_alive(os.getpid(), start_time(os.getpid()) + 1)
