"""Who is named when a run stands still."""

import math
import sys
from dataclasses import replace

from megalite.distributed.waiting import counted
from megalite.training.watchdog.diagnosis import diagnose
from megalite.training.watchdog.frames import locate
from megalite.training.watchdog.heartbeat import Heartbeat
from megalite.training.watchdog.status import OwnStatus, ProcessStatus
from megalite.training.watchdog.timeouts import Timeouts
from megalite.training.watchdog.watchdog import _failed_in


def status(rank: int, phase: str = "forward_backward", **more) -> ProcessStatus:
    more = {"in_collective": True} | more
    return ProcessStatus(rank, "host", 100 + rank, step=7, phase=phase, **more)


def test_the_rank_that_has_not_come_to_a_collective_is_stuck():
    statuses = [
        status(0, collectives={"tp": 5}),
        status(1, collectives={"tp": 4}, in_collective=False),
        status(2),
    ]
    said = diagnose(statuses)
    assert said.startswith("rank 1 (host, process 101) in step 7, forward_backward is stuck")
    assert "4 of 5 collectives of tp" in said
    assert "rank 0 (" not in said


def test_who_waits_for_another_that_is_behind_is_not_named_with_it():
    """Two tensor-parallel ranks are behind the other two; one of them waits for its neighbour."""
    waits = status(0, collectives={"tp 0": 5, "dp": 2})
    computes = status(1, collectives={"tp 0": 4, "dp": 2}, in_collective=False)
    others = [status(n, "reduce", collectives={"tp 1": 6, "dp": 3}) for n in (2, 3)]
    said = diagnose([waits, computes, *others])
    assert said.startswith("rank 1 (host, process 101) in step 7, forward_backward is stuck")
    assert "rank 0" not in said


def test_a_save_beside_the_steps_holds_nobody_up_who_does_not_wait_for_it():
    writes = status(0, collectives={"tp": 5, "checkpoints 7": 3}, write_point="write_data")
    hangs = status(1, collectives={"tp": 4, "checkpoints 7": 4}, in_collective=True)
    said = diagnose([writes, hangs])
    assert "rank 0 (" not in said
    assert said.startswith("rank 1 (host, process 101) in step 7, forward_backward is stuck")
    waits = status(1, "save", collectives={"tp": 5, "checkpoints 7": 4}, in_collective=False)
    assert "rank 0 (host, process 100)" in diagnose([writes, waits])
    assert "3 of 4 collectives of checkpoints 7" in diagnose([writes, waits])


def test_who_waits_for_a_save_is_held_up_by_one_that_left_it():
    waits = {"phase": "save", "in_collective": False}
    statuses = [
        status(0, "reduce", collectives={"pp": 9, "checkpoints 7": 3}),
        status(1, **waits, collectives={"pp": 8, "checkpoints 7": 4}),
        status(2, **waits, collectives={"checkpoints 7": 4}),
    ]
    statuses[0] = replace(statuses[0], step=8)
    said = diagnose(statuses)
    assert said.startswith("rank 0 (host, process 100) in step 8, reduce left out a collective")
    assert "3 of 4 collectives of checkpoints 7" in said


def test_a_rank_that_left_one_out_is_further_on_while_each_is_behind_somewhere():
    statuses = [
        status(0, collectives={"tp": 5, "world": 8}),
        status(1, "reduce", collectives={"tp": 4, "world": 9}),
    ]
    said = diagnose(statuses)
    assert said.startswith("rank 1 (host, process 101) in step 7, reduce left out a collective")
    assert "rank 0" in said


def test_equal_counts_at_two_places_are_out_of_step():
    said = diagnose(
        [status(0, "reduce", collectives={"w": 4}), status(1, "optimizer", collectives={"w": 4})]
    )
    assert said.startswith("rank 1 (host, process 101) in step 7, optimizer is out of step")
    assert "left out a collective or made one too many" in said


def test_a_wait_for_what_all_others_have_begun_is_out_of_step():
    """Collectives of other sizes may pair: the one that left its own out goes on from there."""
    behind = status(0, "reduce", collectives={"w": 4})
    said = diagnose([behind, status(1, "save", collectives={"w": 5})])
    assert said.startswith("rank 1 (host, process 101) in step 7, save is out of step")
    assert "rank 0 in step 7, reduce" in said
    hung = status(2, "save", collectives={"w": 5}, in_collective=False)
    assert "rank 0 (host, process 100) in step 7, reduce is stuck" in diagnose([behind, hung])


def test_a_rank_that_waits_for_no_other_is_stuck():
    said = diagnose(
        [
            status(0),
            status(1, "data", in_collective=False, location="get (data/loader.py:120)"),
            status(2),
        ]
    )
    assert said == "rank 1 (host, process 101) in step 7, data is stuck at get (data/loader.py:120)"


def test_nobody_is_named_where_all_wait_at_one_place():
    assert diagnose([status(0), status(1)]).startswith("all processes stand still in step 7")


def test_a_rank_that_waits_for_work_is_neither_hung_nor_named():
    statuses = [
        status(0, collectives={"w": 5}),
        status(1, collectives={"w": 4}),
        status(2, "wait", in_collective=False),
    ]
    assert "rank 1 (" in diagnose(statuses)
    assert "rank 2" not in diagnose(statuses)
    timeouts = Timeouts(9.0)
    assert timeouts.stall_in("wait") == math.inf
    assert timeouts.stall_in("rollout") == 9.0


def test_a_rank_that_has_ended_is_not_named():
    statuses = [
        status(0, collectives={"w": 5}),
        status(1, collectives={"w": 4}),
        status(2, collectives={"w": 1}, state="ended"),
    ]
    assert "rank 1 (" in diagnose(statuses)
    assert "rank 2" not in diagnose(statuses)


def test_a_lost_connection_is_where_it_was_lost():
    """Its process has left the collective, and waits no more than the others that are in one."""

    def fail() -> None:
        raise RuntimeError("connection reset by peer")

    try:
        try:
            fail()
        except RuntimeError as error:
            raise RuntimeError("a pass failed") from error
    except RuntimeError as error:
        own = OwnStatus(0, Heartbeat())
        assert not own.now().in_collective
        own.lost_in = _failed_in(error)
    found = own.now()
    assert found.in_collective
    assert found.location == "fail"
    assert found.beat == own.now().beat - 1


def test_a_thread_in_a_collective_is_where_it_was_called_from():
    """What measures the wait is around the collective, and is not where the thread is."""
    frames = []

    def wait() -> bool:
        frames.append(sys._getframe())
        return True

    counted(wait)()
    (frame,) = frames
    inside = locate(frame.f_back)  # the innermost frame of Python while the wait lasts
    assert inside.in_collective
    assert inside.text.startswith(
        test_a_thread_in_a_collective_is_where_it_was_called_from.__name__
    )
