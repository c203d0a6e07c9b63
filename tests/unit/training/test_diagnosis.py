"""Who is named when a run stands still."""

import math

from megalite.training.diagnosis import Sign, blame
from megalite.training.watchdog import Watch


def sign(rank: int, phase: str = "forward_backward", **more) -> Sign:
    waits = more.pop("waits", True)
    return Sign(rank, "host", 100 + rank, step=7, phase=phase, waits=waits, **more)


def test_the_rank_that_has_not_come_to_a_collective_is_stuck():
    signs = [sign(0, calls={"tp": 5}), sign(1, calls={"tp": 4}, waits=False), sign(2)]
    said = blame(signs)
    assert said.startswith("rank 1 (host, process 101) in step 7, forward_backward is stuck")
    assert "4 of 5 collectives of tp" in said
    assert "rank 0 (" not in said


def test_a_rank_that_left_one_out_is_further_on_while_each_is_behind_somewhere():
    signs = [sign(0, calls={"tp": 5, "world": 8}), sign(1, "reduce", calls={"tp": 4, "world": 9})]
    said = blame(signs)
    assert said.startswith("rank 1 (host, process 101) in step 7, reduce left out a collective")
    assert "rank 0" in said


def test_equal_counts_at_two_places_are_out_of_step():
    said = blame([sign(0, "reduce", calls={"w": 4}), sign(1, "optimizer", calls={"w": 4})])
    assert said.startswith("rank 1 (host, process 101) in step 7, optimizer is out of step")
    assert "left out a collective or made one too many" in said


def test_a_rank_that_waits_for_no_other_is_stuck():
    said = blame([sign(0), sign(1, "data", waits=False, where="get (data/loader.py:120)"), sign(2)])
    assert said == "rank 1 (host, process 101) in step 7, data is stuck at get (data/loader.py:120)"


def test_nobody_is_named_where_all_wait_at_one_place():
    assert blame([sign(0), sign(1)]).startswith("all processes stand still in step 7")


def test_a_rank_that_waits_for_work_is_neither_hung_nor_to_blame(tmp_path):
    signs = [sign(0, calls={"w": 5}), sign(1, calls={"w": 4}), sign(2, "wait", waits=False)]
    assert "rank 1 (" in blame(signs)
    assert "rank 2" not in blame(signs)
    watch = Watch(9.0, tmp_path)
    assert watch.patience_in("wait") == math.inf
    assert watch.patience_in("rollout") == 9.0


def test_a_rank_that_has_ended_is_not_to_blame():
    signs = [
        sign(0, calls={"w": 5}),
        sign(1, calls={"w": 4}),
        sign(2, calls={"w": 1}, state="ended"),
    ]
    assert "rank 1 (" in blame(signs)
    assert "rank 2" not in blame(signs)
