"""Where the time to a start's first step went."""

import os
import subprocess
import sys
import time

import pytest

from megalite.distributed import beginning
from megalite.distributed.beginning import Beginning, age_s
from megalite.training.first_step import FirstStep, in_words
from megalite.training.watchdog.heartbeat import Heartbeat


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    times = [100.0]
    monkeypatch.setattr(beginning.time, "perf_counter", lambda: times[0])
    return times


def test_each_part_has_its_seconds_and_the_first_step_ends_them(clock):
    counts = Beginning()
    counts.process_started(4.0)
    heartbeat = Heartbeat(beginning=counts)
    clock[0] += 1
    counts.run_started()
    clock[0] += 2
    with counts.within("weights"):
        clock[0] += 8
    clock[0] += 1
    counts.enter("processes")
    for phase in ("evaluate", "data", "forward_backward", "reduce", "log"):
        heartbeat.enter(phase)
        clock[0] += 16
    noted = []
    first = FirstStep(counts, note=noted.append)
    (text,) = first.look()
    seconds = {"imports": 5, "data": 19, "weights": 8, "evaluation": 16, "step": 48}
    assert noted == [{"processes": 0, "model": 0} | seconds]
    assert text.startswith("the first of this start, 96.0 s after it: imports 5.0 s, data 19.0 s, ")
    heartbeat.enter("data")
    assert first.look() == []
    assert len(noted) == 1


def test_a_second_run_in_one_process_begins_anew_and_without_one_nothing_counts(clock):
    counts = Beginning()
    counts.enter("step")
    assert counts.end() == {}
    counts.run_started()
    clock[0] += 3
    counts.run_started()
    clock[0] += 1
    counts.enter("step")
    assert sum(counts.end().values()) == 1


def test_the_process_that_took_much_longer_is_named():
    seconds = {"imports": [2.0, 9.0, 2.5], "processes": [7.5, 0.0, 7.0], "step": [1.0, 1.5, 1.9]}
    assert in_words(seconds, 0, [4, 5, 6]) == (
        "the first of this start, 10.5 s after it: imports 2.0 s (rank 5: 9.0 s), "
        "processes 7.5 s, step 1.0 s"
    )


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="only Linux's /proc tells")
def test_a_process_knows_its_age():
    code = "import time; from megalite.distributed.beginning import age_s; time.sleep(1)"
    started = time.monotonic()
    line = [sys.executable, "-c", f"{code}; print(age_s())"]
    told = float(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    assert 0.9 < told < time.monotonic() - started + 0.1
    assert age_s() > told
