"""Which process is called slow: by its own time, not for its waits or for other programs."""

import threading
import time

import pytest
import torch.distributed as dist

from megalite.distributed.waiting import waited_s, waiting
from megalite.training.metrics.gpu_health import Health
from megalite.training.stragglers import Own, SlowInARow, find_slow
from megalite.training.watchdog.stopwatch import OWN_PHASES, Pace, Stopwatch

DATA, PASSES, LOG = (OWN_PHASES.index(p) for p in ("data", "forward_backward", "log"))


def own(computing: float = 0.1, blocked: float = 0.0, queued: float = 0.0, **health) -> Own:
    """A process that computes in its passes and is blocked in its data."""
    times = [[0.0] * len(OWN_PHASES) for _ in range(2)]
    times[0][PASSES], times[1][DATA] = computing, blocked
    return Own(Pace(*times, queued), Health(**health))


def slow(*all_own: Own, work: list[int] | None = None) -> dict[int, str]:
    found = find_slow(all_own, work or [0] * len(all_own), share=0.25)
    return {one.place: one.words for one in found}


def test_a_process_that_sleeps_is_named_with_its_phase():
    (place, words), *more = slow(own(), own(blocked=0.03), own()).items()
    assert place == 1
    assert not more
    assert "0.03 s more in data, in which it neither computes nor waits for the others" in words
    assert not slow(own(), own(blocked=0.02), own())  # a fifth is not more than a quarter


def test_time_without_a_core_is_not_being_slow():
    assert not slow(own(), own(blocked=0.5, queued=0.49))
    assert set(slow(own(), own(blocked=0.5, queued=0.2))) == {1}


def test_a_slow_core_is_seen_among_those_with_the_same_work_and_without_other_programs():
    assert "0.05 s more in forward_backward: a slow core" in slow(own(), own(0.15))[1]
    assert not slow(own(), own(0.15), work=[0, 1])
    assert not slow(own(), own(0.15, queued=0.05))
    assert set(slow(own(), own(), own(0.15), own(), work=[0, 1, 0, 1])) == {2}


def test_the_first_process_may_write_the_log_and_steps_of_no_time_have_no_stragglers():
    first = own()
    first.pace.computing[LOG] = 1.0
    assert not slow(first, own())
    assert not slow(own(0.001), own(0.003), own(0.001, blocked=0.004))


def test_a_slow_gpu_is_named_with_its_clock():
    words = slow(
        own(product_ms=2.0),
        own(product_ms=2.9, clock_mhz=800.0, top_clock_mhz=1980.0, reasons=0x24),
    )[1]
    assert "its GPU takes 2.9 ms for products that take the others' 2 ms" in words
    assert words.endswith("its clock is 800 of 1980 MHz, held by a power cap and heat")
    assert "pip install nvidia-ml-py" in slow(own(product_ms=2.0), own(product_ms=2.9))[1]


def test_numbers_survive_their_way():
    sent = own(0.2, 0.1, 0.05, product_ms=3.0, clock_mhz=1.0, top_clock_mhz=2.0, reasons=4.0)
    assert Own.of(sent.numbers()) == sent


def test_a_name_is_said_once_after_enough_steps_and_taken_back():
    names, watch = ["rank 0", "rank 1"], SlowInARow(20)
    found = find_slow([own(), own(blocked=1.0)], [0, 0], share=0.25)
    assert watch.see(10, found, names) == []
    assert watch.see(10, [], names) == []
    assert watch.see(10, found, names) == []
    (said,) = watch.see(10, found, names)
    assert said.startswith("rank 1 is slower than the others, 20 steps: a step takes it 1.1 s of")
    assert watch.see(10, found, names) == []
    assert watch.see(10, [], names) == ["rank 1 is as fast as the others again"]


def test_a_stopwatch_tells_work_sleep_and_waits_apart():
    watch = Stopwatch()
    watch.keep(3)
    for _ in range(3):
        watch.begin_step()
        watch.enter("data")
        time.sleep(0.06)
        watch.enter("forward_backward")
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        with waiting():
            time.sleep(0.5)
        watch.enter("save")
        time.sleep(0.5)
    watch.begin_step()
    computing, blocked, queued = watch.pace()
    assert blocked[DATA] >= 0.05
    assert computing[PASSES] >= 0.05
    assert sum(computing) < 0.5
    assert sum(blocked) - queued < 0.5  # neither the wait nor the save is in it


@pytest.fixture
def pair():
    """Two threads are two processes of a group, each with its own collectives."""
    store = dist.HashStore()
    groups: list[dist.ProcessGroup] = [None, None]

    def join(rank: int) -> None:
        groups[rank] = dist.ProcessGroupGloo(store, rank, 2)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return groups


def test_who_comes_first_to_a_collective_waits_and_who_comes_last_does_not(pair):
    waited = [0.0, 0.0]

    def meet(rank: int) -> None:
        before = waited_s()
        time.sleep(0.3 * rank)
        pair[rank].barrier().wait()
        waited[rank] = waited_s() - before

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waited[0] > waited[1]
    assert waited[0] > 0.05
