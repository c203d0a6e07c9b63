"""What one rank meets, all ranks see: a gradient that is not a number; how long a group waits."""

import pytest
import torch


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("layout", [{"tp": 2, "pp": 2}, {"shard": 2, "replicate": 2}])
def test_a_nan_on_one_rank_drops_the_step_on_all(cluster, layout, rank: int):
    """The flag is summed: a maximum over ranks would lose a NaN of a rank other than the first."""
    job = "tests.dist.fault_jobs:train_with_nan"
    for parameters, bad in cluster.run(4, job, model="gpt", layout=layout, rank=rank):
        assert bad == [0, 1, 0]
        first, second, third = parameters
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(second[name], third[name]) for name in first)
        assert all(torch.isfinite(value).all() for value in third.values())


@pytest.mark.parametrize("layout", [{"tp": 2, "pp": 2}, {"shard": 2, "replicate": 2}, {"pp": 4}])
def test_every_group_has_the_configured_timeout(cluster, layout):
    options = {"layout": {**layout, "timeout_s": 123.0}, "model": "t5"}
    for groups in cluster.run(4, "tests.dist.fault_jobs:timeouts", **options):
        assert len(groups) >= 2
        world, *others = groups  # the tests' cluster starts the world's group itself
        assert [seconds for _, seconds in others] == [123.0] * len(others), groups
