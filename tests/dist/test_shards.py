"""What a process holds of a parameter that is split over tp and over shard, odd sizes too."""

from functools import cache

import pytest
import torch

from megalite.distributed.launch import Launch
from tests.dist import shard_jobs as jobs

LAYOUTS = {
    "tp4": (4, {"tp": 4}),
    "shard4": (4, {"shard": 4}),
    "tp2 shard2": (4, {"tp": 2, "shard": 2}),
    "tp2 replicate2": (4, {"tp": 2, "replicate": 2}),
    "tp3 shard2": (6, {"tp": 3, "shard": 2}),
    "tp2 shard4": (8, {"tp": 2, "shard": 4}),
    "tp2 replicate2 shard2": (8, {"tp": 2, "replicate": 2, "shard": 2}),
}


@cache
def alone() -> dict:
    return jobs.held(Launch(), {})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_are_where_their_boxes_say_and_cover_the_whole(cluster, layout: str):
    """Each element as often as the next, and the whole is what one process begins with."""
    processes, sizes = LAYOUTS[layout]
    if sizes == {"tp": 3, "shard": 2} and torch.__version__ < "2.9":
        pytest.skip("PyTorch 2.8's full_tensor fails on a tensor cut unevenly twice")
    found = cluster.run(processes, "tests.dist.shard_jobs:held", layout=sizes)
    for key, theirs in alone().items():
        whole, times = theirs["whole"], torch.zeros_like(theirs["whole"])
        for rank, parameters in enumerate(found):
            ours = parameters[key]
            assert torch.equal(ours["whole"], whole), (key, rank)
            assert ours["part"].shape == ours["shape"], (key, rank)
            part = jobs.box(whole, ours["shape"], ours["offset"])
            assert torch.equal(ours["part"], part), (key, rank)
            jobs.box(times, ours["shape"], ours["offset"]).add_(1)
        assert times.min() == times.max() >= 1, key


def test_a_plain_parameter_is_whole():
    for key, ours in alone().items():
        assert ours["shape"] == tuple(ours["whole"].shape), key
        assert ours["offset"] == (0,) * len(ours["shape"]), key
        assert ours["part"] is ours["whole"]
