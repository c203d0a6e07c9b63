"""When parameters are gathered and dropped again, and gradients reduced: counted and looked at."""

from functools import cache

import pytest
import torch

from megalite.distributed.launch import Launch
from tests.dist import data_parallel_jobs as jobs
from tests.dist import models

BLOCKS = models.config("llama").num_layers
LAYOUTS = {
    "shard2": {"shard": 2},
    "shard2, dropped": {"shard": 2, "reshard_after_forward": True},
    "shard2, each": {"shard": 2, "reduce_gradients": "each"},
    "replicate2 shard2": {"shard": 2, "replicate": 2},
    "replicate2 shard2, dropped": {"shard": 2, "replicate": 2, "reshard_after_forward": True},
}
ALL, NONE = [True] * (BLOCKS + 1), [False] * (BLOCKS + 1)
ROOT = [False] * BLOCKS + [True]  # what is in no block stays from forward to backward


@pytest.fixture(scope="module")
def run(cluster):
    """What a job gives on each process of a layout; it runs once."""

    @cache
    def job(name: str, layout: str):
        sizes = LAYOUTS[layout]
        processes = sizes["shard"] * sizes.get("replicate", 1)
        return cluster.run(processes, f"tests.dist.data_parallel_jobs:{name}", layout=sizes)

    return job


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_last_micro_batch_reduces_and_drops_what_stays_gathered(run, layout):
    """Each group is gathered once a step or, where it is dropped, once a pass."""
    is_dropped = "dropped" in layout
    for found in run("micro_batches", layout):
        groups = BLOCKS + 1
        passes = 2 * BLOCKS + 1 if is_dropped else 0
        gathers = [calls.get("_allgather_base_", 0) for calls in found["calls"]]
        assert gathers == [passes or groups, passes, passes]
        reductions = [calls.get("_reduce_scatter_base_", 0) for calls in found["calls"]]
        assert reductions == ([groups] * 3 if "each" in layout else [0, 0, groups])
        sums = [calls.get("allreduce_", 0) for calls in found["calls"]]
        assert sums[:-1] == [0, 0] or "each" in layout
        assert sums[-1] == groups or "replicate" not in layout
        kept = NONE if is_dropped else ALL
        assert found["groups"] == [kept, kept, NONE]


def alone_on_share(rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Gradients of one process that has a rank's samples."""
    return jobs.micro_batches(Launch(), {}, rank * models.SAMPLES // ranks)["gradients"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_several_micro_batches_are_the_sum_over_all_processes(run, layout):
    sizes = LAYOUTS[layout]
    ranks = sizes["shard"] * sizes.get("replicate", 1)
    theirs = {}
    for rank in range(ranks):
        for name, gradient in alone_on_share(rank, ranks).items():
            theirs[name] = theirs.get(name, 0) + gradient
    for found in run("micro_batches", layout):
        assert found["gradients"].keys() == theirs.keys()
        for name, gradient in found["gradients"].items():
            difference = (gradient - theirs[name]).norm()
            assert difference <= 1e-5 * theirs[name].norm(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inside_a_gathered_block_nothing_is_sent_and_behind_it_all_is_sharded(run, layout):
    """Processes run different numbers of passes there; later ones drop what they did before."""
    for found in run("gathered", layout):
        assert found["same"]
        assert found["inside"] == {}
        assert found["behind"] == {"_allgather_base_": BLOCKS + 1}
        behind = ROOT if "dropped" in layout else ALL
        assert found["groups"] == [ALL, ALL, NONE, behind]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_error_ends_a_gathered_block_and_the_next_has_the_parameters_of_now(run, layout):
    theirs = jobs.changed(Launch(), {})["logits"]
    for found in run("changed", layout):
        assert found["groups"] == NONE
        torch.testing.assert_close(found["logits"], theirs, rtol=1e-5, atol=1e-6)
