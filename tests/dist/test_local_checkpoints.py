"""Checkpoints on the nodes' own disks: a lost node's parts come from its neighbour, bit for bit."""

import pytest

JOB = "tests.dist.local_jobs:save_and_find"
OWN = "rank-00002.safetensors"  # of node 1, whose copy is on node 0

KEPT = {
    "nothing": {},
    "a node's disk is lost": {1: ["lost"]},
    "another node's disk is lost": {0: ["lost"]},
    "a part is damaged": {1: [f"{OWN} flipped"]},
    "a part is cut short": {1: [f"{OWN} cut"]},
    "a part is gone": {1: [f"{OWN} gone"]},
    "a manifest is damaged": {1: ["rank-00002.json flipped"]},
    "parts of both nodes are damaged": {0: ["rank-00000.json cut"], 1: [f"{OWN} flipped"]},
}


def found(cluster, tmp_path, damages, **more):
    return cluster.run(4, JOB, folder=str(tmp_path), damages=damages, **more)


@pytest.mark.parametrize("case", KEPT)
def test_a_start_has_the_state_of_the_last_save_whatever_one_node_lost(cluster, tmp_path, case):
    for step, is_same, said, there in found(cluster, tmp_path, KEPT[case]):
        assert (step, is_same) == (8, True), said
        assert {name.partition("/")[0] for name in there} == {"step-00000008"}
        assert len(there) == 8  # four parts, two of them the neighbour's, and their manifests


LOST = {
    "a part and its copy": {0: [f"{OWN} flipped"], 1: [f"{OWN} gone"]},
    "both disks": {0: ["lost"], 1: ["lost"]},
}


@pytest.mark.parametrize("case", LOST)
def test_what_is_whole_nowhere_is_not_taken(cluster, tmp_path, case):
    for step, _, said, _ in found(cluster, tmp_path, LOST[case]):
        assert step == -1
        assert bool(said) == (case != "both disks")


def test_an_older_one_another_layout_and_one_that_may_not_be_taken_are_passed_over(
    cluster, tmp_path
):
    for step, _, said, _ in found(cluster, tmp_path / "older", {}, later_than=8):
        assert (step, said) == (-1, [])
    for step, _, said, _ in found(cluster, tmp_path / "layout", {}, rows=2):
        assert step == -1
        assert not said or "it is for its own layout alone" in said[0]
    results = found(cluster, tmp_path / "refused", {}, refused="it has learned too much")
    assert [step for step, *_ in results] == [-1] * 4
    assert results[0][2] == ["local checkpoint of step 8: it has learned too much"]


def test_one_disk_of_two_nodes_is_refused(cluster, tmp_path):
    said = cluster.run(4, "tests.dist.local_jobs:on_one_disk", folder=str(tmp_path))
    assert len(set(said)) == 1
    assert "is one folder for several nodes" in said[0]


@pytest.mark.parametrize("rank", [0, 3])
def test_a_save_that_one_process_cant_write_leaves_the_one_before(cluster, tmp_path, rank):
    job = "tests.dist.local_jobs:fail_on_one"
    for said, step in cluster.run(4, job, folder=str(tmp_path), rank=rank):
        assert len(said) == 1
        assert "a local checkpoint could not be written" in said[0]
        assert step == 4
