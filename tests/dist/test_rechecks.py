"""A wrong bit that comes once is trained over; the rank that is wrong each time is named."""

import re

import pytest

JOB = "tests.dist.recheck_jobs:rechecked"
SIGN, LOW = -1, 8  # bits: of a large change, and of one that no metric shows


def play(cluster, tmp_path, layout, recheck, fault, processes=None):
    count = processes or 2
    options = {"layout": layout, "recheck": recheck, "fault": fault}
    name = f"run-{len(list(tmp_path.iterdir()))}"
    answers = cluster.run(count, JOB, folder=str(tmp_path / name), **options)
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


@pytest.mark.parametrize("layout", [{"shard": 2}, {"pp": 2}], ids=str)
def test_a_bit_that_is_wrong_once_changes_nothing(cluster, tmp_path, layout):
    _, clean, untold, _, _ = play(cluster, tmp_path, layout, {}, {})
    assert untold == [None] * 5
    said, curve, codes, why, _ = play(
        cluster, tmp_path, layout, {"every": 3}, {"rank": 1, "bit": LOW}
    )
    assert not why
    assert codes == [None, None, 2, None, None]
    (line,) = [line for line in said.splitlines() if "computed again" in line]
    assert line.startswith("step 3: computed again (by schedule): another result")
    assert "a transient fault: the first was wrong, by a third" in line
    assert curve == clean


def test_a_rank_that_is_wrong_each_time_is_outvoted_and_named(cluster, tmp_path):
    fault = {"rank": 2, "bit": LOW, "again": True}
    _, curve, _, why, code = play(cluster, tmp_path, {"shard": 4}, {"every": 3}, fault, 4)
    assert code == 6
    assert len(curve) == 2
    assert "rank 2 (" in why
    assert "computes wrongly, the other 3 agree" in why
    assert not any(f"rank {other} (" in why for other in (0, 1, 3))


def test_of_two_that_differ_both_are_named(cluster, tmp_path):
    fault = {"rank": 1, "bit": SIGN, "again": True}
    _, _, _, why, code = play(cluster, tmp_path, {"replicate": 2}, {"every": 3}, fault)
    assert code == 6
    assert re.search(r"it is one of rank 0 \(.*; rank 1 \(.*none is in the majority", why)


def test_rows_that_are_right_are_found_right_in_turn_or_by_one(cluster, tmp_path):
    said, curve, codes, why, _ = play(cluster, tmp_path, {"shard": 2}, {"every": 2}, {})
    assert not why
    assert codes == [None, 0, None, 0, None]
    assert said.count("all 2 data-parallel ranks make the same of one's rows: it is right") == 2
    said, same, codes, _, _ = play(cluster, tmp_path, {"pp": 2}, {"every": 2}, {})
    assert codes == [None, 1, None, 1, None]
    assert "this layout has no other data-parallel rank" in said
    assert [row["loss"] for row in same] == pytest.approx([row["loss"] for row in curve])


def test_a_spike_is_computed_again(cluster, tmp_path):
    """What the bound above the losses before would say is put in its place."""
    _, clean, _, _, _ = play(cluster, tmp_path, {"shard": 2}, {}, {})
    recheck = {"suspicious": True}
    said, curve, codes, _, _ = play(cluster, tmp_path, {"shard": 2}, recheck, {"rank": 0})
    assert (
        "step 3: computed again (a spike of loss): another result (in the loss of rank 0 (" in said
    )
    assert codes == [None, None, 2, None, None]
    assert curve == clean
    recheck |= {"transient": "stop"}
    _, _, _, why, code = play(cluster, tmp_path, {"shard": 2}, recheck, {"rank": 0})
    assert code == 5
    assert "nothing of this step is saved" in why
